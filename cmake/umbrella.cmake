# Writes include/torchlore/torchlore.hpp, which includes every public header:
#   cmake -P cmake/umbrella.cmake             writes it
#   cmake -DCHECK=ON -P cmake/umbrella.cmake  fails unless it is up to date
# Left out: fmt.hpp (fmt stays a choice), folders named detail or impl, and adapter headers, which say
# so themselves by a line with the words "Not in torchlore.hpp".
cmake_minimum_required(VERSION 3.25)
cmake_path(GET CMAKE_CURRENT_LIST_DIR PARENT_PATH root)
set(umbrella "${root}/include/torchlore/torchlore.hpp")

file(GLOB_RECURSE headers RELATIVE "${root}/include" "${root}/include/torchlore/*.hpp")
list(FILTER headers EXCLUDE REGEX "/(detail|impl)/|^torchlore/(torchlore|fmt)\\.hpp$")
list(SORT headers)
set(wanted "#pragma once\n\n// All public headers, written by cmake/umbrella.cmake. Include single headers where\n// compile time counts.\n// IWYU pragma: begin_exports\n\n")
foreach(header IN LISTS headers)
  file(STRINGS "${root}/include/${header}" adapter REGEX "Not in torchlore\\.hpp")
  if(NOT adapter)
    string(APPEND wanted "#include \"${header}\"\n")
  endif()
endforeach()

if(NOT CHECK)
  file(WRITE "${umbrella}" "${wanted}")
  return()
endif()
set(present "")
if(EXISTS "${umbrella}")
  file(READ "${umbrella}" present)
endif()
if(NOT present STREQUAL wanted)
  message(FATAL_ERROR "include/torchlore/torchlore.hpp is not up to date: run cmake -P cmake/umbrella.cmake")
endif()
