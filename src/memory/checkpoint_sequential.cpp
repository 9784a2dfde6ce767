#include "torchlore/memory/checkpoint_sequential.hpp"

#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <unordered_set>

#include "block_state.hpp"
#include "detached_input.hpp"
#include "torchlore/core/device.hpp"
#include "torchlore/core/error.hpp"
#include "torchlore/core/rng.hpp"
#include "torchlore/intercept/saved_tensor_scope.hpp"

namespace torchlore::memory {

BlockSequence BlockSequence::slice(int64_t begin, int64_t end) const {
  BlockSequence part;
  part.blocks_.assign(blocks_.begin() + begin, blocks_.begin() + end);
  part.modules_.assign(modules_.begin() + begin, modules_.begin() + end);
  return part;
}

at::Tensor BlockSequence::operator()(at::Tensor x) const {
  for (const auto& block : blocks_) x = block(x);
  return x;
}

std::vector<std::shared_ptr<torch::nn::Module>> BlockSequence::modules() const {
  std::vector<std::shared_ptr<torch::nn::Module>> all;
  for (const auto& modules : modules_) all.insert(all.end(), modules.begin(), modules.end());
  return all;
}

namespace {

using StorageKey = const c10::StorageImpl*;

StorageKey storage_of(const at::Tensor& tensor) {
  return tensor.has_storage() ? tensor.storage().unsafeGetStorageImpl() : nullptr;
}

Bytes bytes_of(const at::Tensor& tensor) {
  return Bytes(static_cast<int64_t>(tensor.has_storage() ? tensor.storage().nbytes() : 0));
}

/// A parameter, or a view of one: there anyway.
bool is_parameter(const at::Tensor& tensor) {
  const auto& base = tensor.is_view() ? tensor._base() : tensor;
  return base.is_leaf() && base.requires_grad();
}

/// Lists the storages that autograd keeps of one block, each once. It keeps them alive meanwhile, so
/// that none is taken for another.
class SavedStorages final : public SavedTensorHandler {
 public:
  explicit SavedStorages(StorageKey input) : input_(input) {}
  std::unique_ptr<PackedTensor> pack(const at::Tensor& tensor) override {
    if (tensor.has_storage() && (storage_of(tensor) == input_ || !is_parameter(tensor)) &&
        seen_.insert(storage_of(tensor)).second) {
      storages.push_back(tensor.storage());
    }
    return nullptr;
  }

  std::vector<c10::Storage> storages;

 private:
  StorageKey input_;
  std::unordered_set<StorageKey> seen_;
};

/// What one block keeps beside its input and output, and which of these two.
struct Measured {
  BlockCost cost;
  bool output_saved = false;
  at::Tensor output;
};

Measured measure(const BlockSequence& block, const at::Tensor& x) {
  const auto saved = std::make_shared<SavedStorages>(storage_of(x));
  Measured result;
  result.cost.input = bytes_of(x);
  synchronize(x.device());
  const auto start = std::chrono::steady_clock::now();
  {
    const SavedTensorScope scope(saved);
    result.output = block(x);
  }
  synchronize(x.device());
  result.cost.seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  for (const auto& storage : saved->storages) {
    if (storage.unsafeGetStorageImpl() == storage_of(x)) {
      result.cost.input_saved = true;
    } else if (storage.unsafeGetStorageImpl() == storage_of(result.output)) {
      result.output_saved = true;
    } else {
      result.cost.saved = result.cost.saved + Bytes(static_cast<int64_t>(storage.nbytes()));
    }
  }
  return result;
}

std::vector<BlockCost> measure_all(const BlockSequence& blocks, at::Tensor x) {
  const at::AutoGradMode grad(true);
  const RngScope random;
  std::vector<BlockCost> costs;
  bool saved_before = false;
  // A block may change its input in place.
  x = detached_input(x.detach().clone(), x.requires_grad(), x.is_leaf());
  for (int64_t i = 0; i < blocks.size(); ++i) {
    const auto block = blocks.slice(i, i + 1);
    BlockState state(block.modules(), {}, /*module_buffers=*/true);
    const auto again = [&] { return detached_input(x, x.requires_grad(), x.is_leaf()); };
    {
      const BlockState::Rewind buffers(state);
      measure(block, again());  // the first pass warms up
    }
    const BlockState::Rewind buffers(state);
    auto measured = measure(block, again());
    measured.cost.input_saved |= saved_before;
    saved_before = measured.output_saved;
    costs.push_back(measured.cost);
    x = detached_input(measured.output, measured.output.requires_grad(), /*leaf=*/false);
  }
  return costs;
}

/// Whether a plan that was kept still holds.
bool fits(const CheckpointPlan& plan, const BlockSequence& blocks, const at::Tensor& x,
          Bytes budget) {
  return !plan.empty() && static_cast<int64_t>(plan.blocks().size()) == blocks.size() &&
         plan.budget() == budget && bytes_of(x) <= plan.blocks().front().input;
}

CheckpointPlan plan_for(const BlockSequence& blocks, const at::Tensor& x,
                        const CheckpointSequentialOptions& options) {
  if (options.budget) return plan_checkpoints(blocks, x, *options.budget);
  const auto root = std::lround(std::sqrt(static_cast<double>(blocks.size())));
  return CheckpointPlan::equal(blocks.size(), options.segments > 0 ? options.segments : root);
}

}  // namespace

CheckpointPlan plan_checkpoints(const BlockSequence& blocks, const at::Tensor& x, Bytes budget) {
  return CheckpointPlan::for_budget(measure_all(blocks, x), budget);
}

at::Tensor checkpoint_sequential(const BlockSequence& blocks, const at::Tensor& x,
                                 const CheckpointSequentialOptions& options) {
  check_not_negative("segments", static_cast<double>(options.segments));
  TORCH_CHECK_VALUE(!options.budget || options.segments == 0,
                    "checkpoint_sequential was given both a budget and a number of segments; give "
                    "one of them");
  if (blocks.size() == 0 || !at::GradMode::is_enabled()) return blocks(x);
  CheckpointPlan made;
  auto& plan = options.plan != nullptr ? *options.plan : made;
  if (!options.budget || !fits(plan, blocks, x, *options.budget)) {
    plan = plan_for(blocks, x, options);
  }
  auto y = x;
  for (const auto& segment : plan.segments()) {
    const auto part = blocks.slice(segment.begin, segment.end);
    y = segment.checkpointed ? checkpoint(options.checkpoint, part, std::move(y)) : part(y);
  }
  return y;
}

}  // namespace torchlore::memory
