# Measures every claim on this machine, and writes bench/claims/results.jsonl and docs/claims.md:
#   cmake -P cmake/claims.cmake
# Leave the machine alone meanwhile. What takes minutes (compile time, kills, train_text) is left out, and
# its last figures are kept, with
#   cmake -DTORCHLORE_CLAIMS_SHORT=ON -P cmake/claims.cmake
# and docs/claims.md is made from the figures that are there with
#   cmake -DTORCHLORE_CLAIMS_RENDER=ON -P cmake/claims.cmake
# The settings of cmake/setup.cmake hold here too. What is only measured by name (demo and tests from
# nothing) is left out: torchlore_claims --run from_nothing --json bench/claims/results.jsonl
include("${CMAKE_CURRENT_LIST_DIR}/setup.cmake")
set(results "${TORCHLORE_ROOT}/bench/claims/results.jsonl")
set(claims "${TORCHLORE_BUILD_DIR}/bench/torchlore_claims")

torchlore_setup(-DTORCHLORE_BUILD_BENCH=ON -DTORCHLORE_BUILD_EXAMPLES=ON)
torchlore_build(torchlore_claims example_train_text)

if(NOT TORCHLORE_CLAIMS_RENDER)
  torchlore_must_run("The peers are Python libraries; the text above says what is missing."
    "${CMAKE_COMMAND}" "-DTORCHLORE_PIP_ARGS=${TORCHLORE_PIP_ARGS}" -P "${CMAKE_CURRENT_LIST_DIR}/peers.cmake")
  find_program(apt apt-get NO_CACHE)
  if(apt AND NOT EXISTS /usr/share/datasets/fashion-mnist
     AND NOT EXISTS "${TORCHLORE_DEBIAN_PREFIX}/share/datasets/fashion-mnist")
    torchlore_get_debian_packages(dataset-fashion-mnist)  # without it some claims say that it is missing
  endif()
  set(fresh "${TORCHLORE_SCRATCH}/claims.jsonl")
  file(REMOVE "${fresh}")
  set(short "")
  if(TORCHLORE_CLAIMS_SHORT)
    set(short --short)
    if(EXISTS "${results}")
      file(COPY_FILE "${results}" "${fresh}")  # of two figures for one claim the later one counts
    endif()
  endif()
  torchlore_must_run("" "${claims}" --all --short --threads 1 --json "${fresh}")
  torchlore_must_run("" "${claims}" --all ${short} --json "${fresh}")
  file(RENAME "${fresh}" "${results}")
endif()

execute_process(COMMAND "${claims}" --render "${results}"
  OUTPUT_FILE "${TORCHLORE_ROOT}/docs/claims.md" COMMAND_ERROR_IS_FATAL ANY)
torchlore_say("Written: bench/claims/results.jsonl, docs/claims.md")
