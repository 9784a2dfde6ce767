#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../claim.hpp"

namespace torchlore::claims {

/// The command line of torchlore_claims.
struct Options {
  bool list = false;
  bool all = false;
  bool quick = false;
  bool only_short = false;
  int64_t threads = 0;  ///< 0: as many as there are cores
  std::vector<std::string> groups = {};
  std::vector<std::string> names = {};
  std::string json = {};    ///< file to append to
  std::string render = {};  ///< file to make docs/claims.md from
};

/// What the command prints when it is asked nothing.
extern const char* const kUsage;

/// @throws c10::ValueError naming the argument that is wrong, and what is allowed.
Options parse_options(const std::vector<std::string>& arguments);

/// The claims that the options ask for, each once.
/// @throws c10::ValueError for a name or a group that is not there, with those that are.
std::vector<Claim> chosen_claims(const Options& options, const std::vector<Claim>& claims);

}  // namespace torchlore::claims
