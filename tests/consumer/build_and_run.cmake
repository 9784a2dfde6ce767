# cmake -DSOURCE=… -DBINARY=… -P build_and_run.cmake -- <arguments for configure>
# Configures a consumer project, builds it, and runs each of its programs through its own ctest.
cmake_minimum_required(VERSION 3.25)
include(ProcessorCount)
ProcessorCount(cores)

set(configure_arguments "")
set(seen FALSE)
math(EXPR last "${CMAKE_ARGC} - 1")
foreach(i RANGE ${last})
  if(seen)
    list(APPEND configure_arguments "${CMAKE_ARGV${i}}")
  elseif("${CMAKE_ARGV${i}}" STREQUAL "--")
    set(seen TRUE)
  endif()
endforeach()

execute_process(COMMAND "${CMAKE_COMMAND}" -S "${SOURCE}" -B "${BINARY}" ${configure_arguments}
                COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND "${CMAKE_COMMAND}" --build "${BINARY}" --parallel ${cores} COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND "${CMAKE_CTEST_COMMAND}" --test-dir "${BINARY}" --output-on-failure --no-tests=error
                COMMAND_ERROR_IS_FATAL ANY)
