#pragma once

#include <ATen/TensorOperators.h>

#include <algorithm>
#include <random>

#include "intercept/coverage/modules.hpp"

/// Small networks drawn at random from all modules of torch::nn.
namespace torchlore::testing {

/// All modules that take a tensor: what networks are drawn from.
inline const std::vector<ModuleCase>& drawn_modules() {
  static const auto cases = [] {
    std::vector<ModuleCase> all;
    for (auto& family : module_families()) {
      for (auto& module : family.modules) all.push_back(std::move(module));
    }
    return all;
  }();
  return cases;
}

/// A chain of modules, each fed with what the last one gave, and of the small things that models do
/// between them: in-place ops, views, residual sums, dropout, parts without gradients.
class RandomNetwork {
 public:
  /// Network number `seed`; the first module of networks 0, 1, 2, … goes through all there are.
  explicit RandomNetwork(uint64_t seed) : engine_(seed) {
    const auto& cases = drawn_modules();
    at::manual_seed(static_cast<uint64_t>(seed));
    const auto depth = 3 + below(4);
    for (int64_t i = 0; i < depth; ++i) {
      const auto& chosen =
          cases[i == 0 ? seed % cases.size()
                       : static_cast<size_t>(below(static_cast<int64_t>(cases.size())))];
      names += (i == 0 ? "" : ", ") + chosen.name;
      layers_.push_back({chosen.build(), below(kWays)});
      layers_.back().built.module->train();
      for (const auto& p : layers_.back().built.module->parameters()) parameters.push_back(p);
      for (const auto& b : layers_.back().built.module->buffers()) buffers.push_back(b);
    }
    start_ = at::randn({24}).requires_grad_();
    parameters.push_back(start_);
  }

  at::Tensor loss() {
    auto h = start_ * 1;
    at::Tensor total = h.square().mean();
    for (auto& layer : layers_) {
      // Any module can follow any other: its own inputs are scaled by what came before.
      const auto scaled = [&](const at::Tensor& x) {
        const auto repeats = (x.numel() + h.numel() - 1) / h.numel();
        const auto scale = h.flatten().repeat({repeats}).slice(0, 0, x.numel()).view(x.sizes());
        return x * (at::sigmoid(scale) * 0.5 + 0.5);
      };
      auto y = layer.built.forward_of(scaled);
      y = (y / (y.detach().abs().mean() + 1)).flatten();
      h = joined(layer.way, h, y);
      total = total + h.square().mean();
    }
    return total;
  }

  std::string names;  ///< "Linear, ReLU, …"
  std::vector<at::Tensor> parameters;
  std::vector<at::Tensor> buffers;

 private:
  struct Layer {
    BuiltModule built;
    int64_t way = 0;
  };
  static constexpr int64_t kWays = 9;

  int64_t below(int64_t count) {
    return static_cast<int64_t>(engine_() % static_cast<uint64_t>(count));
  }

  /// What becomes of a layer's output y, and of h before it.
  static at::Tensor joined(int64_t way, const at::Tensor& h, at::Tensor y) {
    const auto n = std::min(h.numel(), y.numel());
    switch (way) {
      case 1:
        return y.tanh();
      case 2:
        return y.mul(2).relu_();
      case 3:
        return y.slice(0, 0, n) + h.slice(0, 0, n);
      case 4:
        return at::dropout(y, 0.3, true);
      case 5: {
        const auto out = at::zeros({2 * n});
        out.slice(0, 0, n).copy_(y.slice(0, 0, n));
        out.slice(0, n).copy_(h.slice(0, 0, n)).mul_(0.5);
        return out;
      }
      case 6: {
        const at::NoGradGuard no_grad;
        const auto weight = y.sigmoid().mul_(2);
        const at::AutoGradMode with_grad(true);
        return y * weight;
      }
      case 7: {
        auto parts = y.repeat({2}).unsafe_chunk(2);
        return at::cat({parts[0].sigmoid_(), parts[1].sin().mul_(2)});
      }
      case 8:
        return y * at::rand_like(y);
      default:
        return y;
    }
  }

  std::mt19937_64 engine_;
  std::vector<Layer> layers_;
  at::Tensor start_;
};

}  // namespace torchlore::testing
