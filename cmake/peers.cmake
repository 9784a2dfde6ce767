# The Python libraries that claims are compared with, in build/peers: cmake -P cmake/peers.cmake
#
# torch comes first, at the version the claims are made for; nothing installed later may replace it.
# TORCHLORE_TORCH_REQUIREMENT and TORCHLORE_PIP_ARGS may be set, as for cmake/setup.cmake.
include("${CMAKE_CURRENT_LIST_DIR}/setup.cmake")
set(venv "${TORCHLORE_SCRATCH}/peers")

if(NOT EXISTS "${venv}/bin/pip")
  find_program(python NAMES python3 python NO_CACHE)
  if(NOT python)
    message(FATAL_ERROR "The peers are Python libraries: install Python 3 first.")
  endif()
  torchlore_make_venv("${python}" "${venv}")
endif()

set(pip "${venv}/bin/python" -m pip -q --disable-pip-version-check install ${TORCHLORE_PIP_ARGS})
torchlore_say("Installing ${TORCHLORE_TORCH_REQUIREMENT} and the peers into build/peers")
torchlore_must_run("pip could not install it.\n${TORCHLORE_CPU_TORCH_HELP}"
  ${pip} "${TORCHLORE_TORCH_REQUIREMENT}")
execute_process(COMMAND "${venv}/bin/python" -W ignore -c "import torch; print(torch.__version__)"
  OUTPUT_VARIABLE version OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
file(WRITE "${venv}/constraints.txt" "torch==${version}\n")
torchlore_must_run("pip could not install the peers."
  ${pip} -c "${venv}/constraints.txt" -r "${TORCHLORE_ROOT}/bench/peers/requirements.txt")
torchlore_say("The peers are ready: torch ${version}")
