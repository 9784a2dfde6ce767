# The Python libraries that claims are compared with, in build/peers: cmake -P cmake/peers.cmake
#
# torch comes first, at the version the claims are made for; nothing installed later may replace it.
# Settings, given as `cmake -DNAME=value -P cmake/peers.cmake`:
#   TORCHLORE_TORCH_REQUIREMENT  (default: torch==2.13.0)
#   TORCHLORE_PIP_ARGS           more arguments for pip, separated by spaces
cmake_minimum_required(VERSION 3.25)

cmake_path(GET CMAKE_CURRENT_LIST_DIR PARENT_PATH root)
set(venv "${root}/build/peers")
if(NOT DEFINED TORCHLORE_TORCH_REQUIREMENT)
  set(TORCHLORE_TORCH_REQUIREMENT "torch==2.13.0")
endif()
separate_arguments(pip_args NATIVE_COMMAND "${TORCHLORE_PIP_ARGS}")

function(must_run advice)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE failed)
  if(failed)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "This failed: ${command}\n${advice}")
  endif()
endfunction()

if(NOT EXISTS "${venv}/bin/pip")
  find_program(python NAMES python3 python NO_CACHE)
  if(NOT python)
    message(FATAL_ERROR "The peers are Python libraries: install Python 3 first.")
  endif()
  message(STATUS "Making a virtual environment in build/peers")
  must_run("Install Python's venv module (Debian: python3-venv)." "${python}" -m venv "${venv}")
endif()

set(pip "${venv}/bin/python" -m pip -q --disable-pip-version-check install ${pip_args})
set(advice "Another index can be named: cmake \"-DTORCHLORE_PIP_ARGS=--index-url <it>\" -P cmake/peers.cmake")
message(STATUS "Installing ${TORCHLORE_TORCH_REQUIREMENT} and the peers")
must_run("${advice}" ${pip} "${TORCHLORE_TORCH_REQUIREMENT}")
execute_process(COMMAND "${venv}/bin/python" -c "import torch; print(torch.__version__)"
  OUTPUT_VARIABLE version OUTPUT_STRIP_TRAILING_WHITESPACE)
file(WRITE "${venv}/constraints.txt" "torch==${version}\n")
must_run("${advice}" ${pip} -c "${venv}/constraints.txt" -r "${root}/bench/peers/requirements.txt")
message(STATUS "The peers are ready: torch ${version}")
