#pragma once

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/nn/module.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "torchlore/privacy/clipped_sum.hpp"
#include "torchlore/privacy/per_sample.hpp"

/// The gradients of single examples by a plain loop: the forward and LibTorch's backward for one example at a
/// time. Everything is compared with it.
namespace torchlore::testing {

/// A model and how the losses of some of its examples come about.
struct PrivateCase {
  std::string name;
  std::shared_ptr<torch::nn::Module> model;
  int64_t examples = 0;
  /// The losses [to - from] of the examples from `from` to `to`, by a forward of these alone.
  std::function<at::Tensor(int64_t from, int64_t to)> losses;
};

using Gradients = std::map<std::string, at::Tensor>;

/// [B, *shape] for each trainable parameter: zeros where a parameter has no gradient.
inline Gradients loop_gradients(const PrivateCase& c) {
  Gradients result;
  const auto parameters = c.model->named_parameters();
  for (const auto& item : parameters) {
    if (!item.value().requires_grad()) continue;
    auto sizes = item.value().sizes().vec();
    sizes.insert(sizes.begin(), c.examples);
    result[item.key()] = at::zeros(sizes, item.value().options().requires_grad(false));
  }
  for (int64_t e = 0; e < c.examples; ++e) {
    for (const auto& item : parameters) item.value().mutable_grad().reset();
    c.losses(e, e + 1).sum().backward();
    for (auto& [name, gradients] : result) {
      const auto& gradient = parameters[name].grad();
      if (gradient.defined())
        gradients[e].copy_(gradient.is_sparse() ? gradient.to_dense() : gradient);
    }
  }
  for (const auto& item : parameters) item.value().mutable_grad().reset();
  return result;
}

/// [B] over the parameters whose names `is_in` accepts.
inline at::Tensor loop_norms(
    const Gradients& gradients,
    const std::function<bool(const std::string&)>& is_in = [](const auto&) { return true; }) {
  at::Tensor squares;
  for (const auto& [name, gradient] : gradients) {
    if (!is_in(name)) continue;
    const auto square = gradient.to(at::kDouble).reshape({gradient.size(0), -1}).square().sum(1);
    squares = squares.defined() ? squares + square : square;
  }
  return squares.sqrt();
}

/// ‖actual - expected‖ / ‖expected‖, over all elements; the expected norm counts `floor` at least.
inline double relative_error(const at::Tensor& actual, const at::Tensor& expected,
                             double floor = 1e-30) {
  const auto difference = actual.to(at::kDouble) - expected.to(at::kDouble);
  return difference.norm().item<double>() /
         std::max(floor, expected.to(at::kDouble).norm().item<double>());
}

inline double limit(at::ScalarType dtype) { return dtype == at::kDouble ? 1e-11 : 1e-5; }

/// What is small beside the whole gradient is compared with the whole: rounding is of that size.
inline void expect_close(const at::Tensor& actual, const at::Tensor& expected, double whole,
                         const std::string& what) {
  ASSERT_TRUE(actual.defined()) << what;
  ASSERT_EQ(actual.sizes(), expected.sizes()) << what;
  EXPECT_LE(relative_error(actual, expected, 1e-2 * whole), limit(expected.scalar_type())) << what;
}

/// Norms, gradients and flat clipped sums, in every mode, against the loop.
inline void expect_equal_to_loop(const PrivateCase& c) {
  SCOPED_TRACE(c.name);
  const auto expected = loop_gradients(c);
  const auto norms = loop_norms(expected);
  const double whole = norms.norm().item<double>();
  ASSERT_GT(whole, 0);
  for (const auto mode : {PerSampleMode::automatic, PerSampleMode::instantiated,
                          PerSampleMode::ghost, PerSampleMode::recomputed}) {
    SCOPED_TRACE(static_cast<int>(mode));
    const PerSampleOptions options{.mode = mode};
    const auto found_norms = per_sample_norms(c.losses(0, c.examples), *c.model, options);
    EXPECT_EQ(found_norms.scalar_type(), at::kDouble);
    const auto dtype = c.model->parameters()[0].scalar_type();
    EXPECT_LE(relative_error(found_norms, norms), limit(dtype)) << found_norms << norms;

    const double max_norm = norms.median().item<double>();
    const auto factors = (max_norm / norms).clamp_max(1);
    const auto sum = add_clipped_sum(c.losses(0, c.examples), *c.model,
                                     ExampleClipping::flat(max_norm), options);
    EXPECT_LE(relative_error(sum.factors.squeeze(1), factors), limit(dtype));
    for (const auto& item : c.model->named_parameters()) {
      if (!expected.contains(item.key())) continue;
      const auto& gradients = expected.at(item.key());
      const auto weights = factors.view({-1, 1}).to(gradients.scalar_type());
      const auto wanted = (gradients.reshape({c.examples, -1}) * weights).sum(0);
      if (!item.value().grad().defined()) {
        EXPECT_EQ(wanted.norm().item<double>(), 0) << item.key();
        continue;
      }
      expect_close(item.value().grad(), wanted.view(item.value().sizes()), max_norm, item.key());
      item.value().mutable_grad().reset();
    }
  }
  for (const auto& one : per_sample_grads(c.losses(0, c.examples), *c.model)) {
    ASSERT_TRUE(expected.contains(one.name)) << one.name;
    EXPECT_EQ(one.gradients.scalar_type(), one.parameter.scalar_type());
    expect_close(one.gradients, expected.at(one.name), whole, one.name);
  }
}

}  // namespace torchlore::testing
