# What torchlore stands on. Included by the build, and by the installed package's config.
include("${CMAKE_CURRENT_LIST_DIR}/TorchloreFindTorch.cmake")

# LibTorch: where CMake looks (Torch_DIR, CMAKE_PREFIX_PATH), else the active Python's.
if(NOT TARGET torch)
  # TorchConfig warns that kineto is missing from every wheel. It is linked into libtorch_cpu there, and
  # torchlore links only the target `torch`; a value that is set stops the search and its warning.
  if(NOT DEFINED kineto_LIBRARY)
    set(kineto_LIBRARY torch)
    set(torchlore_unset_kineto TRUE)
  endif()
  # GLOBAL: otherwise a project that adds torchlore by add_subdirectory cannot see LibTorch's targets.
  find_package(Torch ${TORCHLORE_OLDEST_SUPPORTED_TORCH} QUIET GLOBAL)
  if(NOT Torch_FOUND)
    find_program(torchlore_python NAMES python3 python NO_CACHE)
    if(torchlore_python)
      torchlore_python_torch("${torchlore_python}" torchlore_torch_dir)
    endif()
    find_package(Torch ${TORCHLORE_OLDEST_SUPPORTED_TORCH} REQUIRED GLOBAL HINTS "${torchlore_torch_dir}")
  endif()
  if(torchlore_unset_kineto)
    unset(kineto_LIBRARY)
    unset(torchlore_unset_kineto)
  endif()
  message(STATUS "Found LibTorch ${Torch_VERSION}: ${Torch_DIR}")
endif()
find_package(Eigen3 3.4 REQUIRED NO_MODULE GLOBAL)

# libcrypto, for the key stream of privacy noise.
if(NOT TARGET OpenSSL::Crypto)
  find_package(OpenSSL 1.1.1 REQUIRED COMPONENTS Crypto GLOBAL)
endif()

# OpenMP, by compiler flag. FindOpenMP's target names the compiler's own libgomp by path; LibTorch
# brings a libgomp of the same name, which is the one that must be loaded, and CMake warns of the clash.
if(NOT TARGET torchlore::openmp)
  add_library(torchlore::openmp INTERFACE IMPORTED GLOBAL)
  find_package(OpenMP QUIET COMPONENTS CXX)
  if(OpenMP_CXX_FOUND)
    separate_arguments(torchlore_openmp_flags NATIVE_COMMAND "${OpenMP_CXX_FLAGS}")
    target_compile_options(torchlore::openmp INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:${torchlore_openmp_flags}>")
    target_link_options(torchlore::openmp INTERFACE ${torchlore_openmp_flags})
  else()
    message(STATUS "OpenMP not found: torchlore's own kernels will run on one thread")
  endif()
endif()

# LibTorch ships its own fmt headers but no fmt symbols, and they shadow any other fmt: use them
# header-only. Where LibTorch ships none, take the system's.
if(NOT TARGET torchlore::fmt)
  add_library(torchlore::fmt INTERFACE IMPORTED GLOBAL)
  get_target_property(torchlore_torch_include torch INTERFACE_INCLUDE_DIRECTORIES)
  find_path(TORCHLORE_TORCH_FMT fmt/format.h PATHS ${torchlore_torch_include} NO_DEFAULT_PATH NO_CACHE)
  if(TORCHLORE_TORCH_FMT)
    target_compile_definitions(torchlore::fmt INTERFACE FMT_HEADER_ONLY=1)
  else()
    find_package(fmt REQUIRED GLOBAL)
    target_link_libraries(torchlore::fmt INTERFACE fmt::fmt-header-only)
  endif()
endif()
