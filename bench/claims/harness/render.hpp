#pragma once

#include <istream>
#include <string>

namespace torchlore::claims {

/// docs/claims.md from the lines of bench/claims/results.jsonl. Of two lines for the same claim,
/// setting and machine the later one counts.
/// @throws c10::ValueError naming the line that is not what a run writes.
std::string render(std::istream& results);

}  // namespace torchlore::claims
