#pragma once

#include <ATen/Functions.h>
#include <torch/nn/module.h>

#include <functional>
#include <memory>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace torchlore::testing {

/// Makes another input of one that requires a gradient.
using InputMap = std::function<at::Tensor(const at::Tensor&)>;

/// A module, ready to be called.
struct BuiltModule {
  std::shared_ptr<torch::nn::Module> module;
  std::function<at::Tensor()> forward;  ///< the module's (first) output
  /// The same for other inputs of the same shapes.
  std::function<at::Tensor(const InputMap&)> forward_of = nullptr;
};

/// One module of torch::nn, with an input that suits it.
struct ModuleCase {
  std::string name;
  std::function<BuiltModule()> build;
};

inline at::Tensor first_tensor(const at::Tensor& output) { return output; }
template <typename... Rest>
at::Tensor first_tensor(const std::tuple<at::Tensor, Rest...>& output) {
  return std::get<0>(output);
}

template <typename T>
requires requires(const T& output) { output.output; }  // AdaptiveLogSoftmaxWithLoss
at::Tensor first_tensor(const T& output) { return output.output; }

/// A fresh leaf, so that each call of a case has a graph of its own.
inline at::Tensor leaf_like(const at::Tensor& x) {
  return x.detach().clone().requires_grad_(x.requires_grad());
}

/// The module that `make` gives, called with these inputs: those that require a gradient are leaves.
template <typename Make, typename... Inputs>
ModuleCase module_case(std::string name, Make make, const Inputs&... inputs) {
  return {
      std::move(name), [=]() -> BuiltModule {
        at::manual_seed(5);
        auto holder = make();
        auto arguments = std::make_tuple(leaf_like(inputs)...);
        auto forward_of = [holder, arguments](const InputMap& map) mutable {
          const auto other = [&](const at::Tensor& x) { return x.requires_grad() ? map(x) : x; };
          return std::apply([&](auto&... x) { return first_tensor(holder->forward(other(x)...)); },
                            arguments);
        };
        auto forward = [forward_of]() mutable {
          return forward_of([](const at::Tensor& x) { return x; });
        };
        return {holder.ptr(), forward, forward_of};
      }};
}

/// The module M made from `options`, or without any, called with these inputs.
template <typename M, typename... Inputs>
ModuleCase plain_case(std::string name, const Inputs&... inputs) {
  return module_case(
      std::move(name), [] { return M(); }, inputs...);
}

/// An input that requires a gradient.
inline at::Tensor input(at::IntArrayRef sizes) { return at::randn(sizes).requires_grad_(); }

}  // namespace torchlore::testing
