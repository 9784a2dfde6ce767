#pragma once

#include <vector>

#include "../claim.hpp"

namespace torchlore::claims {

/// All claims, sorted by group and name.
const std::vector<Claim>& all_claims();

}  // namespace torchlore::claims
