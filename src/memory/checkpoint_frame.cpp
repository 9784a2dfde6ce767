#include "checkpoint_frame.hpp"

#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/graph_task.h>

#include <algorithm>
#include <cstring>

#include "detached_input.hpp"

namespace torchlore::memory {

namespace ag = torch::autograd;

namespace {

/// Thrown out of the op that saves the last tensor that is needed. No std::exception: the block's
/// handlers are not to take it.
struct Stop {};

uint32_t version_of(const at::Tensor& tensor) {
  return tensor.is_inference() ? 0 : static_cast<uint32_t>(tensor._version());
}

/// A checksum of the elements' bytes, in order.
uint64_t checksum_of(const at::Tensor& tensor) {
  if (!tensor.has_storage()) return 0;  // sparse and opaque tensors go unverified
  const auto bytes = tensor.detach().contiguous().cpu();
  const auto* data = static_cast<const char*>(bytes.const_data_ptr());
  uint64_t sum = 0x9E3779B97F4A7C15;
  const auto mix = [&sum](uint64_t word) {
    sum = (sum ^ word) * 0xD6E8FEB86659FD93;
    sum ^= sum >> 32;
  };
  const size_t size = bytes.nbytes();
  for (size_t at = 0; at < size; at += sizeof(uint64_t)) {
    uint64_t word = 0;
    std::memcpy(&word, data + at, std::min(sizeof word, size - at));
    mix(word);
  }
  return sum;
}

/// Whether two captures of the generators are equal.
bool same_state(const RngState& a, const RngState& b) {
  const auto left = a.state_dict();
  const auto right = b.state_dict();
  return std::equal(left.begin(), left.end(), right.begin(), right.end(),
                    [](const auto& x, const auto& y) {
                      return x.first == y.first && x.second.nbytes() == y.second.nbytes() &&
                             std::memcmp(x.second.const_data_ptr(), y.second.const_data_ptr(),
                                         x.second.nbytes()) == 0;
                    });
}

/// The input for the recomputation.
at::Tensor input_of(const at::Tensor& saved, const SavedInput& input) {
  auto tensor = detached_input(saved, input.requires_grad, input.leaf);
  // Versions go on from where they were, also where the saved tensor is a copy.
  tensor.unsafeGetTensorImpl()->set_version_counter(c10::VariableVersion(input.version));
  return tensor;
}

}  // namespace

SavedLook::SavedLook(const at::Tensor& tensor, bool with_checksum)
    : sizes(tensor.sizes()),
      dtype(tensor.scalar_type()),
      device(tensor.device()),
      requires_grad(tensor.requires_grad()),
      version(version_of(tensor)),
      checksum(with_checksum ? checksum_of(tensor) : 0) {}

std::string SavedLook::text() const {
  return c10::str(dtype, " ", at::IntArrayRef(sizes), " on ", device,
                  requires_grad ? " with a gradient" : "");
}

SavedInput::SavedInput(const CheckpointScope::Input& input) : argument(input.argument) {
  if (!input.tensor.defined() || input.tensor.is_inference()) {
    tensor = input.tensor;
    return;
  }
  packed = SavedTensorScope::save(input.tensor);
  counter = input.tensor.unsafeGetTensorImpl()->version_counter();
  version = counter.current_version();
  requires_grad = input.tensor.requires_grad();
  leaf = input.tensor.is_leaf();
}

at::Tensor SavedInput::unpack() const {
  if (packed == nullptr) return tensor;
  try {
    return input_of(packed->unpack(), *this);
  } catch (const c10::OutOfMemoryError&) {
    throw;
  } catch (const c10::Error&) {
    if (!changed()) throw;
  }
  TORCH_CHECK(false, "argument ", argument,
              " of a checkpointed block was changed in place between the forward pass and backward "
              "(it is at version ",
              counter.current_version(), ", expected ", version,
              "), so the block cannot be recomputed. Change it out of place, or after backward");
}

/// Takes what the recomputation saves.
class CheckpointFrame::Recorder final : public SavedTensorHandler {
 public:
  Recorder(const CheckpointFrame& frame, std::optional<size_t> only)
      : frame_(frame), only_(only), tensors(std::make_shared<Recomputed>(frame.slots_.size())) {
    for (size_t i = 0; i < frame.slots_.size(); ++i) {
      if (wanted(i)) end_ = i + 1;
    }
    if (frame.options_.verify) end_ = frame.slots_.size();
  }

  std::unique_ptr<PackedTensor> pack(const at::Tensor& tensor) override;
  /// @throws c10::Error unless everything came.
  void check_complete() const;

 private:
  /// What was saved in the recomputation's own graph, which a block may use inside.
  class Held final : public PackedTensor {
   public:
    explicit Held(const at::Tensor& tensor) : tensor_(tensor.detach()) {}
    at::Tensor unpack() override { return tensor_; }

   private:
    at::Tensor tensor_;
  };

  bool wanted(size_t slot) const { return only_ ? slot == *only_ : frame_.alive_[slot]; }
  void check(size_t slot, const at::Tensor& tensor) const;

  const CheckpointFrame& frame_;
  const std::optional<size_t> only_;
  size_t end_ = 0;  // the slot after the last that is wanted
  size_t count_ = 0;

 public:
  const std::shared_ptr<Recomputed> tensors;
};

std::unique_ptr<PackedTensor> CheckpointFrame::Recorder::pack(const at::Tensor& tensor) {
  const size_t slot = count_++;
  if (slot < end_) {
    check(slot, tensor);
    if (wanted(slot)) (*tensors)[slot] = tensor.detach();
    // A block that catches everything goes on after it, and saves more.
    if (count_ == end_ && !frame_.options_.verify) throw Stop{};
  }
  return std::make_unique<Held>(tensor);
}

void CheckpointFrame::Recorder::check(size_t slot, const at::Tensor& tensor) const {
  const auto& first = frame_.slots_[slot];
  const SavedLook now(tensor, frame_.options_.verify);
  const auto which = [&] {
    return c10::str("tensor ", slot + 1, " of ", frame_.slots_.size(),
                    " that a checkpointed block saves for backward");
  };
  TORCH_CHECK(now.sizes == first.sizes && now.dtype == first.dtype && now.device == first.device &&
                  now.requires_grad == first.requires_grad,
              which(), " was ", first.text(), " in the forward pass, but is ", now.text(),
              " when it is recomputed. The block must do the same again: let it depend on nothing "
              "that changes before backward, and freeze parameters before the forward pass");
  TORCH_CHECK(now.version == first.version, which(), " (", first.text(), ") is at version ",
              now.version, " when it is recomputed, but was at version ", first.version,
              " in the forward pass: a parameter, or a tensor that the block holds, was changed in "
              "place in between. Step the optimizer after backward");
  TORCH_CHECK(now.checksum == first.checksum, which(), " (", first.text(),
              ") has other values when it is recomputed. The block must do the same again: draw "
              "random numbers from LibTorch's generators with preserve_rng on, and use "
              "deterministic ops");
}

void CheckpointFrame::Recorder::check_complete() const {
  const size_t expected = frame_.slots_.size();
  TORCH_CHECK(count_ >= end_ && !(frame_.options_.verify && frame_.finished_ && count_ != expected),
              "a checkpointed block saved ", expected,
              " tensors for backward in the forward pass, but ", count_,
              " when it was recomputed. The block must do the same again: let it depend on nothing "
              "that changes before backward, and freeze parameters before the forward pass");
}

CheckpointFrame::CheckpointFrame(const CheckpointOptions& options, CheckpointScope::Replay replay,
                                 const std::vector<CheckpointScope::Input>& inputs,
                                 std::vector<std::shared_ptr<torch::nn::Module>> modules)
    : options_(options),
      replay_(std::move(replay)),
      state_(std::move(modules), options.buffers, options.keep_buffers) {
  inputs_.reserve(inputs.size());
  for (const auto& input : inputs) inputs_.emplace_back(input);
  if (options_.keep) kept_.emplace(options_.keep);
  if (options_.preserve_rng) rng_ = RngState::capture();
}

size_t CheckpointFrame::add(const at::Tensor& tensor) {
  const std::lock_guard lock(mutex_);
  slots_.emplace_back(tensor, options_.verify);
  alive_.push_back(true);
  return slots_.size() - 1;
}

void CheckpointFrame::finish(const std::vector<at::Tensor>& outputs) {
  for (const auto& input : inputs_) {
    TORCH_CHECK(!input.changed(), "a checkpointed block changed its argument ", input.argument,
                " in place, so it cannot be recomputed. Let the block work on a copy (x.clone()), "
                "or out of place");
  }
  state_.forward_done();
  if (kept_) kept_->save(outputs);
  if (rng_ && same_state(*rng_, RngState::capture())) rng_.reset();
  const std::lock_guard lock(mutex_);
  finished_ = true;
}

void CheckpointFrame::drop(size_t slot) {
  const std::lock_guard lock(mutex_);
  alive_[slot] = false;
  for (const auto& running : running_) {
    if (const auto tensors = running.tensors.lock()) (*tensors)[slot] = at::Tensor();
  }
}

std::shared_ptr<Recomputed> CheckpointFrame::of_task(int task) {
  std::erase_if(running_, [](const OfTask& r) { return r.tensors.expired(); });
  for (const auto& running : running_) {
    if (running.task == task) return running.tensors.lock();
  }
  return nullptr;
}

at::Tensor CheckpointFrame::unpack(size_t slot) {
  const std::lock_guard lock(mutex_);
  const int task = ag::get_current_graph_task_id();
  auto tensors = of_task(task);
  if (tensors == nullptr && task >= 0) {
    tensors = recompute(std::nullopt);
    running_.push_back({task, tensors});
    // The backward pass owns them: they go when it ends, be it by an exception.
    ag::Engine::get_default_engine().queue_callback([tensors]() mutable { tensors.reset(); });
  }
  // Outside of backward, or a second time in one pass: for this tensor alone.
  if (tensors == nullptr || !(*tensors)[slot].defined()) tensors = recompute(slot);
  auto tensor = std::move((*tensors)[slot]);
  // Autograd's own check, which it leaves out behind hooks.
  TORCH_CHECK(
      version_of(tensor) == slots_[slot].version,
      "one of the variables needed for gradient computation has been modified by an inplace "
      "operation in a checkpointed block: tensor ",
      slot + 1, " of ", slots_.size(), " that it saves (", slots_[slot].text(), ") is at version ",
      version_of(tensor), "; expected version ", slots_[slot].version,
      " instead. Change it out of place");
  return tensor;
}

std::shared_ptr<Recomputed> CheckpointFrame::recompute(std::optional<size_t> only) {
  const auto recorder = std::make_shared<Recorder>(*this, only);
  replay(recorder);
  recorder->check_complete();
  return recorder->tensors;
}

void CheckpointFrame::replay(const std::shared_ptr<Recorder>& recorder) {
  state_.check_parameters();
  const auto inputs = unpack_inputs();
  // A block that runs backward inside has kept nothing yet.
  auto* const results = finished_ ? kept() : nullptr;
  if (results != nullptr) results->unpack();
  const BlockState::Rewind buffers(state_);
  std::optional<RngScope> rng;
  if (rng_) {
    rng.emplace();
    rng_->restore();
  }
  const AutocastStateGuard autocast(autocast_);
  const OpModeGuard modes(modes_);
  const at::AutoGradMode grad(true);
  const SavedTensorScope scope(recorder);
  const KeptOps::Scope kept_results(results, /*replay=*/true);
  try {
    replay_(inputs);
  } catch (const Stop&) {
  }
}

std::vector<at::Tensor> CheckpointFrame::unpack_inputs() const {
  std::vector<at::Tensor> inputs;
  inputs.reserve(inputs_.size());
  for (const auto& input : inputs_) inputs.push_back(input.unpack());
  return inputs;
}

}  // namespace torchlore::memory
