#include "torchlore/core/reducer.hpp"

#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

namespace torchlore {

Reducer::Reducer(int64_t world_size, int64_t rank, Function function)
    : world_size_(world_size), rank_(rank) {
  TORCH_CHECK_VALUE(world_size >= 1, "world_size must be 1 or more, but is ", world_size);
  TORCH_CHECK_VALUE(rank >= 0 && rank < world_size, "rank must lie in [0, ", world_size,
                    "), but is ", rank);
  TORCH_CHECK_VALUE(function != nullptr, "a Reducer needs a function that reduces over ranks");
  function_ = std::make_shared<const Function>(std::move(function));
}

namespace detail {

LargestOverRanks::LargestOverRanks(Reducer ranks) : ranks_(std::move(ranks)) {
  if (!ranks_.is_identity()) agreed_ = at::zeros({}, at::kDouble);
}

double LargestOverRanks::operator()(double own) {
  if (ranks_.is_identity()) return own;
  agreed_.fill_(own);
  ranks_.all_reduce_(agreed_, ReduceOp::max);
  return agreed_.item<double>();
}

}  // namespace detail
}  // namespace torchlore
