#include "torchlore/memory/checkpoint.hpp"

#include <unordered_set>

#include "checkpoint_frame.hpp"

namespace torchlore::memory {
namespace {

/// Stands for a tensor that was not kept.
class Dropped final : public PackedTensor {
 public:
  Dropped(std::shared_ptr<CheckpointFrame> frame, size_t slot)
      : frame_(std::move(frame)), slot_(slot) {}
  ~Dropped() override { frame_->drop(slot_); }
  Dropped(const Dropped&) = delete;
  Dropped(Dropped&&) = delete;
  Dropped& operator=(const Dropped&) = delete;
  Dropped& operator=(Dropped&&) = delete;
  at::Tensor unpack() override { return frame_->unpack(slot_); }

 private:
  std::shared_ptr<CheckpointFrame> frame_;
  size_t slot_;
};

/// Keeps nothing of what the forward pass saves.
class Dropper final : public SavedTensorHandler {
 public:
  explicit Dropper(std::shared_ptr<CheckpointFrame> frame) : frame_(std::move(frame)) {}
  std::unique_ptr<PackedTensor> pack(const at::Tensor& tensor) override {
    return std::make_unique<Dropped>(frame_, frame_->add(tensor));
  }

 private:
  std::shared_ptr<CheckpointFrame> frame_;
};

}  // namespace

struct CheckpointScope::State {
  /// What holds during the forward pass.
  struct Inside {
    explicit Inside(const std::shared_ptr<CheckpointFrame>& of)
        : saved(std::make_shared<Dropper>(of)), kept(of->kept(), /*replay=*/false) {}
    SavedTensorScope saved;
    KeptOps::Scope kept;
  };

  State(const CheckpointOptions& options, Replay replay, const std::vector<Input>& inputs,
        std::vector<std::shared_ptr<torch::nn::Module>> modules)
      : frame(std::make_shared<CheckpointFrame>(options, std::move(replay), inputs,
                                                std::move(modules))),
        inside(std::in_place, frame) {}
  std::shared_ptr<CheckpointFrame> frame;
  std::optional<Inside> inside;
};

CheckpointScope::CheckpointScope(const CheckpointOptions& options, Replay replay,
                                 const std::vector<Input>& inputs,
                                 std::vector<std::shared_ptr<torch::nn::Module>> modules)
    : state_(std::make_unique<State>(options, std::move(replay), inputs, std::move(modules))) {}

CheckpointScope::~CheckpointScope() = default;

void CheckpointScope::finish(const std::vector<at::Tensor>& outputs) {
  state_->inside.reset();
  state_->frame->finish(outputs);
}

}  // namespace torchlore::memory

namespace torchlore {

std::function<bool(const std::string& op)> keep_matmuls() {
  return [](const std::string& op) {
    static const std::unordered_set<std::string> products{
        "aten::mm",     "aten::addmm",         "aten::bmm",         "aten::baddbmm",
        "aten::linear", "aten::mkldnn_linear", "aten::convolution", "aten::_convolution"};
    return products.contains(op) || op.starts_with("aten::_scaled_dot_product_");
  };
}

}  // namespace torchlore
