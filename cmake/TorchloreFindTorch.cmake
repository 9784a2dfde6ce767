# Which LibTorch can be built against? Used by the build, by the installed package and by the set-up
# scripts, so that all of them choose alike.

set(TORCHLORE_OLDEST_SUPPORTED_TORCH 2.9)

# Sets `out` to why the LibTorch whose TorchConfig.cmake lies in `torch_dir` cannot be used, or to "".
function(torchlore_torch_problem torch_dir out)
  set(${out} "" PARENT_SCOPE)
  if(NOT EXISTS "${torch_dir}/TorchConfig.cmake")
    set(${out} "it has no TorchConfig.cmake" PARENT_SCOPE)
    return()
  endif()
  include("${torch_dir}/TorchConfigVersion.cmake")
  if(PACKAGE_VERSION VERSION_LESS TORCHLORE_OLDEST_SUPPORTED_TORCH)
    set(${out} "it is version ${PACKAGE_VERSION}; torchlore needs ${TORCHLORE_OLDEST_SUPPORTED_TORCH} or newer"
        PARENT_SCOPE)
  elseif(EXISTS "${torch_dir}/../../../lib/libtorch_cuda.so")
    find_program(nvcc nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin NO_CACHE)
    if(NOT nvcc)
      set(${out} "it is a CUDA build, which needs the CUDA toolkit (nvcc) to build against" PARENT_SCOPE)
    endif()
  endif()
endfunction()

# Sets `out` to the folder of TorchConfig.cmake in the torch package of `python`, or to "".
function(torchlore_python_torch python out)
  set(${out} "" PARENT_SCOPE)
  execute_process(
    COMMAND "${python}" -c "import importlib.util as u; s = u.find_spec('torch'); print(s.origin if s else '')"
    WORKING_DIRECTORY "${CMAKE_CURRENT_FUNCTION_LIST_DIR}"
    OUTPUT_VARIABLE init OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  cmake_path(GET init PARENT_PATH package)
  if(package AND EXISTS "${package}/share/cmake/Torch/TorchConfig.cmake")
    set(${out} "${package}/share/cmake/Torch" PARENT_SCOPE)
  endif()
endfunction()
