# The set-up that demo.cmake and test.cmake share. It takes what is there, and gets the rest:
#
#   LibTorch         the one you name (-DTorch_DIR=… or -DCMAKE_PREFIX_PATH=…, or the environment variables
#                    of these names), the active Python's, else a virtual environment in build/venv
#   Eigen, OpenSSL, GoogleTest, Google Benchmark, nlohmann-json
#                    those CMake finds, else Debian packages: installed by apt when root, unpacked into
#                    build/debian otherwise
#   Ninja, ccache    used when there
#
# Settings, given as `cmake -DNAME=value -P cmake/test.cmake`:
#   TORCHLORE_TORCH_REQUIREMENT  what pip installs into build/venv (default: torch==2.13.0)
#   TORCHLORE_PIP_ARGS           more arguments for pip, separated by spaces
#   TORCHLORE_BUILD_DIR          the build folder (default: build/release)
#   CMAKE_BUILD_TYPE             (default: Release)
#   TORCHLORE_WERROR             warnings are errors (default: OFF)
cmake_minimum_required(VERSION 3.25)
include("${CMAKE_CURRENT_LIST_DIR}/TorchloreFindTorch.cmake")

cmake_path(GET CMAKE_CURRENT_LIST_DIR PARENT_PATH TORCHLORE_ROOT)
set(TORCHLORE_SCRATCH "${TORCHLORE_ROOT}/build")
set(TORCHLORE_DEBIAN_PREFIX "${TORCHLORE_SCRATCH}/debian/usr")

macro(torchlore_default name value)
  if(NOT DEFINED ${name})
    set(${name} "${value}")
  endif()
endmacro()
torchlore_default(TORCHLORE_TORCH_REQUIREMENT "torch==2.13.0")
torchlore_default(TORCHLORE_PIP_ARGS "")
torchlore_default(TORCHLORE_BUILD_DIR "${TORCHLORE_SCRATCH}/release")
torchlore_default(TORCHLORE_WERROR OFF)
torchlore_default(CMAKE_BUILD_TYPE Release)
cmake_path(ABSOLUTE_PATH TORCHLORE_BUILD_DIR BASE_DIRECTORY "${TORCHLORE_ROOT}")
separate_arguments(TORCHLORE_PIP_ARGS NATIVE_COMMAND "${TORCHLORE_PIP_ARGS}")

set(TORCHLORE_CPU_TORCH_HELP
"  To ask pip for a CPU build, name PyTorch's index of CPU wheels (see \"Start locally\" on pytorch.org):
    cmake \"-DTORCHLORE_PIP_ARGS=--index-url <that index>\" -P cmake/test.cmake
  or name a LibTorch that you have:
    cmake -DTorch_DIR=<folder of TorchConfig.cmake> -P cmake/test.cmake")

function(torchlore_say)
  list(JOIN ARGN " " text)
  message(STATUS "${text}")
endfunction()

# Runs a command whose output the user should see; stops with `advice` if it fails.
function(torchlore_must_run advice)
  execute_process(COMMAND ${ARGN} WORKING_DIRECTORY "${TORCHLORE_ROOT}" RESULT_VARIABLE failed)
  if(failed)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "This failed: ${command}\n${advice}")
  endif()
endfunction()

# The same for a command that has nothing to tell unless it fails.
function(torchlore_must_run_quietly advice)
  execute_process(COMMAND ${ARGN} WORKING_DIRECTORY "${TORCHLORE_ROOT}"
                  RESULT_VARIABLE failed OUTPUT_VARIABLE text ERROR_VARIABLE text)
  if(failed)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "This failed: ${command}\n${text}\n${advice}")
  endif()
endfunction()

# --- Debian packages ------------------------------------------------------------------------------

# Installs Debian packages (root), or unpacks them with what they need into build/debian (not root).
function(torchlore_get_debian_packages)
  list(JOIN ARGN " " names)
  find_program(apt apt-get NO_CACHE)
  if(NOT apt)
    message(FATAL_ERROR
      "Missing: ${names} (names of the Debian packages), and this machine has no apt.\n"
      "Install them with your package manager, or name where they are: -DCMAKE_PREFIX_PATH=<folders>")
  endif()
  set(advice "Install ${names} yourself, or name where they are: -DCMAKE_PREFIX_PATH=<folders>")
  execute_process(COMMAND id -u OUTPUT_VARIABLE user OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(user EQUAL 0)
    torchlore_say("Installing Debian packages:" ${names})
    set(ENV{DEBIAN_FRONTEND} noninteractive)
    execute_process(COMMAND ${apt} -q update OUTPUT_QUIET ERROR_QUIET)  # one bad source need not matter
    torchlore_must_run_quietly("${advice}" ${apt} -q -y --no-install-recommends install ${ARGN})
  else()
    torchlore_unpack_debian_packages("${apt}" ${ARGN})
  endif()
endfunction()

# Lists of our own: those of the system may be empty or old, and only root can renew them.
function(torchlore_unpack_debian_packages apt)
  list(JOIN ARGN " " names)
  torchlore_say("Not root: unpacking Debian packages into build/debian:" ${names})
  set(work "${TORCHLORE_SCRATCH}/setup/apt")
  file(MAKE_DIRECTORY "${work}/lists/partial" "${work}/cache/archives/partial" "${work}/deb")
  set(options -q -o "Dir::State::Lists=${work}/lists" -o "Dir::Cache=${work}/cache" -o Debug::NoLocking=1)
  set(advice "Ask for ${names} to be installed, or name where they are: -DCMAKE_PREFIX_PATH=<folders>")
  execute_process(COMMAND ${apt} ${options} update OUTPUT_QUIET ERROR_QUIET)  # one bad source need not matter
  execute_process(
    COMMAND ${apt} ${options} download ${ARGN} WORKING_DIRECTORY "${work}/deb"
    RESULT_VARIABLE failed OUTPUT_VARIABLE text ERROR_VARIABLE text)
  if(failed)
    message(FATAL_ERROR "apt-get could not download ${names}.\n${text}\n${advice}")
  endif()
  file(GLOB archives "${work}/deb/*.deb")
  foreach(archive IN LISTS archives)
    torchlore_must_run_quietly("${advice}" dpkg-deb -x "${archive}" "${TORCHLORE_SCRATCH}/debian")
  endforeach()
endfunction()

# --- Build tool -----------------------------------------------------------------------------------

# Sets TORCHLORE_GENERATOR: the arguments that choose Ninja, or Makefiles where there is no Ninja.
macro(torchlore_find_generator)
  find_program(ninja NAMES ninja ninja-build HINTS "${TORCHLORE_DEBIAN_PREFIX}/bin" NO_CACHE)
  find_program(make NAMES gmake make NO_CACHE)
  if(NOT ninja AND NOT make)
    torchlore_say("Neither ninja nor make is there")
    torchlore_get_debian_packages(ninja-build)
    find_program(ninja NAMES ninja HINTS "${TORCHLORE_DEBIAN_PREFIX}/bin" NO_CACHE REQUIRED)
  endif()
  if(ninja)
    set(TORCHLORE_GENERATOR -G Ninja "-DCMAKE_MAKE_PROGRAM=${ninja}")
  else()
    set(TORCHLORE_GENERATOR -G "Unix Makefiles" "-DCMAKE_MAKE_PROGRAM=${make}")
  endif()
endmacro()

# --- LibTorch -------------------------------------------------------------------------------------

# Sets `out` to the Torch_DIR that the user named, or to "".
function(torchlore_named_torch out)
  set(${out} "" PARENT_SCOPE)
  if(NOT DEFINED Torch_DIR)
    set(Torch_DIR "$ENV{Torch_DIR}")
  endif()
  if(Torch_DIR)
    cmake_path(ABSOLUTE_PATH Torch_DIR BASE_DIRECTORY "${TORCHLORE_ROOT}")
    set(${out} "${Torch_DIR}" PARENT_SCOPE)
    return()
  endif()
  string(REPLACE ":" ";" prefixes "${CMAKE_PREFIX_PATH};$ENV{CMAKE_PREFIX_PATH}")
  foreach(prefix IN LISTS prefixes)
    foreach(suffix share/cmake/Torch Torch lib/cmake/Torch)
      if(EXISTS "${prefix}/${suffix}/TorchConfig.cmake")
        set(${out} "${prefix}/${suffix}" PARENT_SCOPE)
        return()
      endif()
    endforeach()
  endforeach()
endfunction()

# Makes the virtual environment `venv`. Debian splits ensurepip from Python; there pip's own wheel does the same.
function(torchlore_make_venv python venv)
  torchlore_say("Making a virtual environment in ${venv}")
  execute_process(COMMAND "${python}" -m venv "${venv}"
    RESULT_VARIABLE failed OUTPUT_VARIABLE text ERROR_VARIABLE text)
  if(NOT failed)
    return()
  endif()
  file(REMOVE_RECURSE "${venv}")
  find_program(apt apt-get NO_CACHE)
  if(NOT apt)
    message(FATAL_ERROR "${python} cannot make a virtual environment:\n${text}\n"
      "Install Python's venv and ensurepip modules, or name a LibTorch: -DTorch_DIR=<folder of TorchConfig.cmake>")
  endif()
  torchlore_get_debian_packages(python3-pip-whl)
  file(GLOB wheel "/usr/share/python-wheels/pip-*.whl" "${TORCHLORE_DEBIAN_PREFIX}/share/python-wheels/pip-*.whl")
  list(GET wheel 0 wheel)
  torchlore_must_run("Install Debian's python3-venv." "${python}" -m venv --without-pip "${venv}")
  torchlore_must_run("Install Debian's python3-venv." "${CMAKE_COMMAND}" -E env "PYTHONPATH=${wheel}"
    "${venv}/bin/python" -m pip -q --disable-pip-version-check install --no-index "${wheel}")
endfunction()

# Sets `out` to the Torch_DIR of build/venv, which is made or brought up to date first.
function(torchlore_venv_torch python out)
  set(venv "${TORCHLORE_SCRATCH}/venv")
  set(stamp "${venv}/torchlore-requirement.txt")
  set(wanted "${TORCHLORE_TORCH_REQUIREMENT} ${TORCHLORE_PIP_ARGS}")
  set(present "")
  if(EXISTS "${stamp}")
    file(READ "${stamp}" present)
  endif()
  if(NOT present STREQUAL wanted)
    if(NOT EXISTS "${venv}/bin/pip")
      torchlore_make_venv("${python}" "${venv}")
    endif()
    torchlore_say("Installing ${TORCHLORE_TORCH_REQUIREMENT} into build/venv")
    set(again "")
    if(present)
      set(again --force-reinstall)  # another build of the same version would count as installed
    endif()
    torchlore_must_run("pip could not install it.\n${TORCHLORE_CPU_TORCH_HELP}"
      "${venv}/bin/python" -m pip -q --disable-pip-version-check install --no-deps ${again} ${TORCHLORE_PIP_ARGS}
      "${TORCHLORE_TORCH_REQUIREMENT}")
    file(WRITE "${stamp}" "${wanted}")
  endif()
  torchlore_python_torch("${venv}/bin/python" torch_dir)
  torchlore_torch_problem("${torch_dir}" problem)
  if(problem)
    message(FATAL_ERROR "pip installed a LibTorch that cannot be used: ${problem}.\n${TORCHLORE_CPU_TORCH_HELP}")
  endif()
  set(${out} "${torch_dir}" PARENT_SCOPE)
endfunction()

# Sets `out` to the Torch_DIR to build against.
function(torchlore_choose_torch out)
  torchlore_named_torch(named)
  if(named)
    torchlore_torch_problem("${named}" problem)
    if(problem)
      message(FATAL_ERROR "The LibTorch in ${named} cannot be used: ${problem}.")
    endif()
    torchlore_say("LibTorch: the one you named, ${named}")
    set(${out} "${named}" PARENT_SCOPE)
    return()
  endif()
  find_program(python NAMES python3 python NO_CACHE)
  if(NOT python)
    message(FATAL_ERROR "No LibTorch was named, and there is no Python to install one with.\n"
      "Install Python 3, or name a LibTorch: -DTorch_DIR=<folder of TorchConfig.cmake>")
  endif()
  torchlore_python_torch("${python}" active)
  if(active)
    torchlore_torch_problem("${active}" problem)
    if(NOT problem)
      torchlore_say("LibTorch: the active Python's, ${active}")
      set(${out} "${active}" PARENT_SCOPE)
      return()
    endif()
    torchlore_say("The active Python's torch is not used: ${problem}")
  endif()
  torchlore_venv_torch("${python}" torch_dir)
  torchlore_say("LibTorch: ${torch_dir}")
  set(${out} "${torch_dir}" PARENT_SCOPE)
endfunction()

# --- Packages that CMake finds --------------------------------------------------------------------

# Sets `out` to the packages that a project of the user's would not find.
function(torchlore_missing_packages out)
  set(probe "${TORCHLORE_SCRATCH}/setup/probe")
  execute_process(
    COMMAND "${CMAKE_COMMAND}" --fresh -S "${TORCHLORE_ROOT}/cmake/probe" -B "${probe}" ${TORCHLORE_GENERATOR}
            "-DCMAKE_PREFIX_PATH=${TORCHLORE_PREFIXES}"
    RESULT_VARIABLE failed OUTPUT_VARIABLE text ERROR_VARIABLE text)
  if(failed)
    message(FATAL_ERROR "A C++20 compiler is needed (g++ 12, clang 14, or newer), and CMake cannot use one:\n${text}")
  endif()
  file(READ "${probe}/missing.txt" missing)
  set(${out} "${missing}" PARENT_SCOPE)
endfunction()

function(torchlore_get_packages)
  set(debian_Eigen3 libeigen3-dev)
  set(debian_GTest libgtest-dev)
  set(debian_benchmark libbenchmark-dev libbenchmark1debian)
  set(debian_nlohmann_json nlohmann-json3-dev)
  set(debian_OpenSSL libssl-dev libssl3)
  torchlore_missing_packages(missing)
  if(missing)
    set(packages "")
    foreach(name IN LISTS missing)
      list(APPEND packages ${debian_${name}})
    endforeach()
    torchlore_get_debian_packages(${packages})
    torchlore_missing_packages(missing)
    if(missing)
      list(JOIN missing " " names)
      message(FATAL_ERROR "CMake still does not find: ${names}. Name where they are: -DCMAKE_PREFIX_PATH=<folders>")
    endif()
  endif()
  torchlore_say("Eigen, OpenSSL, GoogleTest, Google Benchmark, nlohmann-json: found")
endfunction()

# --- Build ----------------------------------------------------------------------------------------

# A compiler process of LibTorch code takes up to 1.3 GB: as many at once as cores and memory allow.
function(torchlore_jobs out)
  include(ProcessorCount)
  ProcessorCount(cores)
  cmake_host_system_information(RESULT memory QUERY AVAILABLE_PHYSICAL_MEMORY)  # MiB
  math(EXPR jobs "${memory} / 1500")
  if(jobs GREATER cores)
    set(jobs ${cores})
  endif()
  if(jobs LESS 1)
    set(jobs 1)
  endif()
  set(${out} ${jobs} PARENT_SCOPE)
endfunction()

# Gets what is missing and configures the build folder; further arguments go to CMake.
macro(torchlore_setup)
  set(TORCHLORE_PREFIXES ${CMAKE_PREFIX_PATH} "${TORCHLORE_DEBIAN_PREFIX}")
  torchlore_find_generator()
  torchlore_choose_torch(TORCHLORE_TORCH_DIR)
  torchlore_get_packages()
  # For whoever configures by hand afterwards: CMakeLists.txt reads it if nothing else is named.
  file(CONFIGURE OUTPUT "${TORCHLORE_SCRATCH}/setup/found.cmake" CONTENT
    "set(Torch_DIR \"${TORCHLORE_TORCH_DIR}\")\nset(CMAKE_PREFIX_PATH \"${TORCHLORE_PREFIXES}\")\n")
  find_program(ccache ccache NO_CACHE)
  if(DEFINED ENV{CMAKE_CXX_COMPILER_LAUNCHER})
    set(TORCHLORE_LAUNCHER "")
  elseif(ccache)
    set(TORCHLORE_LAUNCHER "-DCMAKE_CXX_COMPILER_LAUNCHER=${ccache}")
  else()
    set(TORCHLORE_LAUNCHER "-DTORCHLORE_PRECOMPILE=ON")
  endif()
  if(EXISTS "${TORCHLORE_BUILD_DIR}/CMakeCache.txt")
    set(TORCHLORE_GENERATOR "")  # a build folder keeps the one it was made with
  endif()
  torchlore_say("Configuring ${TORCHLORE_BUILD_DIR}")
  execute_process(
    COMMAND "${CMAKE_COMMAND}" --log-level=WARNING -S "${TORCHLORE_ROOT}" -B "${TORCHLORE_BUILD_DIR}"
            ${TORCHLORE_GENERATOR} ${TORCHLORE_LAUNCHER} "-DCMAKE_BUILD_TYPE=${CMAKE_BUILD_TYPE}"
            "-DTorch_DIR=${TORCHLORE_TORCH_DIR}" "-DCMAKE_PREFIX_PATH=${TORCHLORE_PREFIXES}"
            "-DTORCHLORE_WERROR=${TORCHLORE_WERROR}" ${ARGN}
    RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "CMake could not configure the build; the text above says why.")
  endif()
endmacro()

# Builds the targets given, or all.
function(torchlore_build)
  torchlore_jobs(jobs)
  set(targets "")
  if(ARGN)
    set(targets --target ${ARGN})
  endif()
  torchlore_say("Building, ${jobs} at a time")
  torchlore_must_run("The text above says why."
    "${CMAKE_COMMAND}" --build "${TORCHLORE_BUILD_DIR}" --parallel ${jobs} ${targets})
endfunction()
