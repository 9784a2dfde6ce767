#pragma once

#include <cstdint>
#include <vector>

#include "torchlore/core/state_dict.hpp"

/// Aggregates that a few wrong or malicious clients cannot move far. They give **no privacy**: each
/// result is, element by element, a value that some client sent, or a mean of few. For privacy see
/// `DpAggregator`.
namespace torchlore {

/// The median of each element over the clients; of an even number the mean of the middle two.
/// @param updates one per client, all held in memory: same names, shapes and floating dtypes.
/// @return detached tensors of the first one's dtypes.
/// @throws c10::ValueError if there are no updates, if they differ in names or shapes, or if one holds
///         a value that is not finite; the text names which. c10::TypeError for other dtypes.
/// Source: Yin, Chen, Ramchandran, Bartlett (2018), arXiv:1803.01498.
StateDict coordinate_median(const std::vector<StateDict>& updates);

/// The mean of each element without its `trim` smallest and `trim` largest values; otherwise as
/// `coordinate_median`.
/// @param updates as there.
/// @param trim how many clients may be wrong: 0 or more, and less than half of them.
/// @throws c10::ValueError as there, or if trim is out of range.
StateDict trimmed_mean(const std::vector<StateDict>& updates, int64_t trim);

}  // namespace torchlore
