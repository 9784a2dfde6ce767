# Runs torchlore_claims as a user does: -DPROGRAM=… -DCLAIM=<a quick one> -DFOLDER=<scratch>
cmake_minimum_required(VERSION 3.25)

function(run expected_code)
  execute_process(COMMAND ${PROGRAM} ${ARGN} RESULT_VARIABLE code OUTPUT_VARIABLE out ERROR_VARIABLE err)
  if(NOT code EQUAL expected_code)
    message(FATAL_ERROR "${ARGN} exits with ${code} instead of ${expected_code}\n${out}\n${err}")
  endif()
  set(out "${out}" PARENT_SCOPE)
  set(err "${err}" PARENT_SCOPE)
endfunction()

run(0 --list)
if(NOT out MATCHES "${CLAIM}")
  message(FATAL_ERROR "--list does not name ${CLAIM}:\n${out}")
endif()

run(0 --quick --threads 1 --run ${CLAIM})
string(REGEX MATCHALL "[^\n]+" lines "${out}")
if(NOT lines)
  message(FATAL_ERROR "no line came out")
endif()
foreach(line IN LISTS lines)
  foreach(key claim group setting baseline measured unit bar holds note)
    string(JSON value ERROR_VARIABLE error GET "${line}" ${key})
    if(error)
      message(FATAL_ERROR "${error}:\n${line}")
    endif()
  endforeach()
  string(JSON bounds LENGTH "${line}" interval)
  string(JSON setting GET "${line}" setting)
  if(NOT bounds EQUAL 2 OR NOT setting MATCHES "quick")
    message(FATAL_ERROR "the interval has two bounds, and the setting says that the run was quick:\n${line}")
  endif()
endforeach()

run(1 --run no_such_claim)
if(NOT err MATCHES "there is no claim 'no_such_claim'; there are: .*${CLAIM}")
  message(FATAL_ERROR "the message does not help:\n${err}")
endif()

run(1 --quick --run ${CLAIM} --json "${FOLDER}/kept.jsonl")
if(EXISTS "${FOLDER}/kept.jsonl")
  message(FATAL_ERROR "a quick run kept its lines")
endif()

# The page: the later of two lines counts, and what does not hold says so.
set(results "${FOLDER}/results.jsonl")
file(WRITE "${results}" [=[
{"run":{"cpu":"A; B","cores":2,"libtorch":"2.13.0","compiler":"g++ 12","date":"2026-01-01"}}
{"claim":"a/b","group":"core","setting":"s","baseline":"c","measured":0.5,"unit":"x","interval":[0.4,0.6],"bar":0.45,"holds":false,"note":"first"}
{"claim":"a/b","group":"core","setting":"s","baseline":"c","measured":0.4,"unit":"x","interval":[0.3,0.44],"bar":0.45,"holds":true,"note":"second"}
{"claim":"a/c","group":"core","setting":"s","baseline":"c","measured":0.4,"unit":"x","interval":[0.3,0.5],"bar":0.45,"holds":true,"note":""}
{"claim":"d","group":"step","setting":"s","baseline":"c","measured":2,"unit":"s","interval":[1,3],"bar":1.5,"holds":false,"note":""}
{"claim":"e","group":"step","setting":"s","baseline":"c","measured":null,"unit":"x","interval":[null,null],"bar":1,"holds":false,"note":"peer not installed"}
{"claim":"f","group":"step","setting":"s","baseline":"c","measured":7,"unit":"x","interval":[6,8],"bar":null,"holds":true,"note":""}
]=])
run(0 --render "${results}")
foreach(expected
    "## A; B, 2 cores, LibTorch 2.13.0, g++ 12"
    "2 of 4 hold."
    "| a/b | s | c | 0.4× (0.3 – 0.44) | ≤ 0.45× | holds |"
    "| a/c | s | c | 0.4× (0.3 – 0.5) | ≤ 0.45× | holds, narrowly |"
    "| d | s | c | 2 s (1 – 3) | ≤ 1.5 s | **does not hold** |"
    "| e | s | c | – | ≤ 1× | **not shown** |"
    "| f | s | c | 7× (6 – 8) | – | published |"
    "- a/b. s: second."
    "- e. s: peer not installed.")
  string(FIND "${out}" "${expected}" place)
  if(place EQUAL -1)
    message(FATAL_ERROR "the page lacks: ${expected}\n${out}")
  endif()
endforeach()
if(out MATCHES "first")
  message(FATAL_ERROR "the page holds a line that a later one replaced")
endif()

file(WRITE "${results}" "no JSON\n")
run(1 --render "${results}")
if(NOT err MATCHES "line 1 of the results is not what a run writes")
  message(FATAL_ERROR "the message does not help:\n${err}")
endif()
