# Set-up, build and all tests: cmake -P cmake/test.cmake
# The last line of the output reads "N passed, N failed" (", N skipped" follows if any were).
include("${CMAKE_CURRENT_LIST_DIR}/setup.cmake")

torchlore_setup(-DTORCHLORE_BUILD_TESTS=ON -DTORCHLORE_BUILD_EXAMPLES=ON -DTORCHLORE_BUILD_BENCH=ON)
torchlore_build()

set(report "${TORCHLORE_BUILD_DIR}/tests/report.xml")
file(REMOVE "${report}")
torchlore_jobs(jobs)
execute_process(
  COMMAND "${CMAKE_CTEST_COMMAND}" --test-dir "${TORCHLORE_BUILD_DIR}" --output-on-failure --no-tests=error
          --parallel ${jobs} --output-junit "${report}"
  RESULT_VARIABLE ctest_failed)
if(NOT EXISTS "${report}")
  message(FATAL_ERROR "ctest ended with ${ctest_failed} and without a report")
endif()

file(READ "${report}" text)
foreach(name tests failures skipped disabled)
  if(NOT text MATCHES "[ \t\n]${name}=\"([0-9]+)\"")
    message(FATAL_ERROR "${report} does not say how many ${name} there were")
  endif()
  set(${name} ${CMAKE_MATCH_1})
endforeach()
# A test whose program is missing, or whose fixture failed, stands there as skipped. It is a failure.
string(REGEX MATCHALL "<skipped message=\"(Unable to find|Fixture dependency|Failed test dep)" not_run "${text}")
list(LENGTH not_run not_run)
math(EXPR failures "${failures} + ${not_run}")
math(EXPR skipped "${skipped} + ${disabled} - ${not_run}")
math(EXPR passed "${tests} - ${failures} - ${skipped}")
set(summary "${passed} passed, ${failures} failed")
if(skipped GREATER 0)
  string(APPEND summary ", ${skipped} skipped")
endif()
if(ctest_failed)
  message(SEND_ERROR "Some tests failed")  # the exit status; unlike FATAL_ERROR it lets the summary come last
endif()
execute_process(COMMAND "${CMAKE_COMMAND}" -E echo "${summary}")
