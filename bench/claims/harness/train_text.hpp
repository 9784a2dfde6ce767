#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "../claim.hpp"

namespace torchlore::claims {

/// Runs examples/train_text once, both sides, as a user's shell would, and returns what it reports.
/// @param options on top of those that say the seed, the threads and where the run is kept
/// @throws c10::Error if the program fails.
nlohmann::json run_train_text(const Context& context, int seed,
                              const std::vector<std::string>& options = {});

}  // namespace torchlore::claims
