#pragma once

#include <map>
#include <string>
#include <vector>

#include "torchlore/intercept/tape.hpp"
#include "torchlore/privacy/clipped_sum.hpp"

namespace torchlore::detail {

/// Which parameters are clipped together, and to which norm.
class ClipGroups {
 public:
  /// @throws c10::ValueError for groups that leave a parameter out, hold one twice, or name nothing.
  ClipGroups(const Tape::NamedParameters& parameters, const ExampleClipping& clipping);

  /// The group of a parameter.
  size_t of(const std::string& parameter) const { return group_.at(parameter); }

  std::vector<double> max_norms = {};  ///< of each group

 private:
  void group_by_layer(const Tape::NamedParameters& parameters, double max_norm);
  void group_by_names(const Tape::NamedParameters& parameters,
                      const std::vector<ClipGroup>& groups);

  std::map<std::string, size_t> group_;
};

}  // namespace torchlore::detail
