# Fetches the headers of the oldest LibTorch that torchlore supports, for the test `oldest_libtorch`:
#   cmake -P cmake/oldest.cmake
#   cmake -B build/dev -DTORCHLORE_OLDEST_TORCH=build/oldest/torch
# The headers are those of the CPU wheel for aarch64 (100 MB; the x86-64 wheel of that version is a CUDA
# build of 900 MB). They are only parsed, never linked, so the processor does not matter.
cmake_minimum_required(VERSION 3.25)
cmake_path(GET CMAKE_CURRENT_LIST_DIR PARENT_PATH root)
set(folder "${root}/build/oldest")
set(version 2.9.0)
if(EXISTS "${folder}/torch/include/torch/csrc/api/include/torch/version.h")
  message(STATUS "The headers of LibTorch ${version} are in ${folder}/torch")
  return()
endif()

set(python "${root}/build/venv/bin/python")
if(NOT EXISTS "${python}")
  find_program(python NAMES python3 python NO_CACHE REQUIRED)
endif()
execute_process(
  COMMAND "${python}" -m pip -q download --no-deps --only-binary=:all: --python-version 3.11
          --implementation cp --platform manylinux_2_28_aarch64 -d "${folder}" torch==${version}
  RESULT_VARIABLE failed)
file(GLOB wheel "${folder}/torch-${version}*.whl")
if(failed OR NOT wheel)
  message(FATAL_ERROR "pip could not download torch ${version}")
endif()
file(ARCHIVE_EXTRACT INPUT "${wheel}" DESTINATION "${folder}" PATTERNS "torch/include/*")
file(REMOVE "${wheel}")
message(STATUS "The headers of LibTorch ${version} are in ${folder}/torch")
