#include "torchlore/optimizer/recalibrate_batch_norm.hpp"

#include <c10/core/GradMode.h>
#include <torch/nn/modules/batchnorm.h>

#include <optional>
#include <unordered_set>
#include <utility>
#include <vector>

namespace torchlore {
namespace {

/// A batch norm of any dimension. Gives its momentum back when it ends.
class Layer {
 public:
  template <typename BatchNorm>
  explicit Layer(BatchNorm& layer)
      : momentum_(&layer.options.momentum()),
        momentum_before_(*momentum_),
        live_{layer.running_mean, layer.running_var, layer.num_batches_tracked} {
    for (const auto& statistic : live_) before_.push_back(statistic.clone());
  }
  Layer(Layer&& other) noexcept
      : momentum_(std::exchange(other.momentum_, nullptr)),
        momentum_before_(other.momentum_before_),
        live_(std::move(other.live_)),
        before_(std::move(other.before_)) {}
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;
  Layer& operator=(Layer&&) = delete;
  ~Layer() {
    if (momentum_ != nullptr) *momentum_ = momentum_before_;
  }

  void reset() {
    live_[0].zero_();
    live_[1].fill_(1);
    live_[2].zero_();
    *momentum_ = std::nullopt;  // the plain mean over batches
  }
  bool saw_batches() const { return live_[2].item<int64_t>() > 0; }
  void restore_statistics() {
    for (size_t i = 0; i < live_.size(); ++i) live_[i].copy_(before_[i]);
  }

 private:
  std::optional<double>* momentum_;
  std::optional<double> momentum_before_;
  std::vector<at::Tensor> live_;  // mean, variance, number of batches
  std::vector<at::Tensor> before_;
};

template <typename BatchNorm>
bool add_if(torch::nn::Module& module, std::vector<Layer>& layers) {
  auto* layer = dynamic_cast<BatchNorm*>(&module);
  if (layer == nullptr) return false;
  if (layer->running_mean.defined()) layers.emplace_back(*layer);
  return true;
}

/// All batch norms of the model that track statistics, each once.
std::vector<Layer> tracking_layers(torch::nn::Module& model) {
  std::vector<Layer> layers;
  std::unordered_set<const void*> seen;
  model.apply([&](torch::nn::Module& module) {
    if (!seen.insert(&module).second) return;
    add_if<torch::nn::BatchNorm1dImpl>(module, layers) ||
        add_if<torch::nn::BatchNorm2dImpl>(module, layers) ||
        add_if<torch::nn::BatchNorm3dImpl>(module, layers);
  });
  return layers;
}

/// Training mode for all modules, and each its own again.
class TrainingMode {
 public:
  explicit TrainingMode(torch::nn::Module& model) {
    model.apply(
        [&](torch::nn::Module& module) { before_.emplace_back(&module, module.is_training()); });
    model.train();
  }
  TrainingMode(const TrainingMode&) = delete;
  TrainingMode& operator=(const TrainingMode&) = delete;
  ~TrainingMode() {
    // Parents come first: train() reaches their children, which then get their own mode.
    for (const auto& [module, training] : before_) module->train(training);
  }

 private:
  std::vector<std::pair<torch::nn::Module*, bool>> before_;
};

}  // namespace

int64_t recalibrate_batch_norm(torch::nn::Module& model, c10::function_ref<void()> forward) {
  const c10::NoGradGuard no_grad;
  auto layers = tracking_layers(model);
  if (layers.empty()) return 0;
  for (auto& layer : layers) layer.reset();
  try {
    const TrainingMode training(model);
    forward();
  } catch (...) {
    for (auto& layer : layers) layer.restore_statistics();
    throw;
  }
  int64_t measured = 0;
  for (auto& layer : layers) {
    if (layer.saw_batches()) {
      ++measured;
    } else {
      layer.restore_statistics();
    }
  }
  TORCH_CHECK_VALUE(measured > 0, "recalibrate_batch_norm: no batch reached any of the model's ",
                    layers.size(),
                    " batch norms; run the model itself in the function, on at least one batch");
  return measured;
}

}  // namespace torchlore
