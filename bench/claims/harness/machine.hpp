#pragma once

#include <string>

namespace torchlore::claims {

/// The machine, the library and the day of a run, as one JSON line: {"run": {…}}.
std::string machine_line();

}  // namespace torchlore::claims
