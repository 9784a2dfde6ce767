#include "torchlore/memory/checkpoint.hpp"

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
  State(const CheckpointOptions& options, Replay replay, const std::vector<Input>& inputs,
        std::vector<std::shared_ptr<torch::nn::Module>> modules)
      : frame(std::make_shared<CheckpointFrame>(options, std::move(replay), inputs,
                                                std::move(modules))),
        scope(std::make_shared<Dropper>(frame)) {}
  std::shared_ptr<CheckpointFrame> frame;
  SavedTensorScope scope;
};

CheckpointScope::CheckpointScope(const CheckpointOptions& options, Replay replay,
                                 const std::vector<Input>& inputs,
                                 std::vector<std::shared_ptr<torch::nn::Module>> modules)
    : state_(std::make_unique<State>(options, std::move(replay), inputs, std::move(modules))) {}

CheckpointScope::~CheckpointScope() = default;

void CheckpointScope::finish() { state_->frame->finish(); }

}  // namespace torchlore::memory
