#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <functional>
#include <vector>

#include "attention_oracle.hpp"
#include "support/tolerance.hpp"
#include "torchlore/attention/sparse_attention.hpp"

namespace torchlore {
namespace {

using at::Tensor;
using testing::close;
using Tensors = std::vector<Tensor>;
/// A number that depends on some float64 tensors.
using Loss = std::function<Tensor(const Tensors&)>;

Tensors leaves(const Tensors& values) {
  Tensors result;
  for (const auto& x : values) result.push_back(x.detach().clone().requires_grad_());
  return result;
}

/// Gradients by central differences, one element at a time.
Tensors differences(const Loss& loss, const Tensors& at_values) {
  constexpr double kStep = 1e-5;
  Tensors result;
  for (size_t i = 0; i < at_values.size(); ++i) {
    auto gradient = at::empty_like(at_values[i]);
    for (int64_t j = 0; j < at_values[i].numel(); ++j) {
      const auto shifted = [&](double by) {
        auto moved = leaves(at_values);
        moved[i].data_ptr<double>()[j] += by;
        return loss(moved).item<double>();
      };
      gradient.data_ptr<double>()[j] = (shifted(kStep) - shifted(-kStep)) / (2 * kStep);
    }
    result.push_back(gradient);
  }
  return result;
}

void expect_gradients(const Loss& loss, const Tensors& values) {
  at::set_num_threads(1);  // so small that threads would only wait for each other
  const auto inputs = leaves(values);
  const auto found = torch::autograd::grad({loss(inputs)}, inputs);
  const auto expected = differences(loss, values);
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_TRUE(at::allclose(found[i], expected[i], 1e-7, 1e-8))
        << "input " << i << ": " << (found[i] - expected[i]).abs().max();
  }
}

/// A number that weighs all elements differently.
Tensor weighed(const Tensor& x) {
  return (x * at::arange(1, x.numel() + 1, x.options()).view(x.sizes()).sin()).sum();
}

struct Small {
  MaskSpec spec =
      (mask::causal(Align::bottom_right) & mask::window(9, Align::bottom_right)) | mask::sinks(2);
  BlockLayout layout = BlockLayout::build(spec, 5, 40, {.block_size = 32});
  Tensor query = at::randn({1, 2, 5, 3}, at::kDouble);
  Tensor key = at::randn({1, 1, 40, 3}, at::kDouble);
  Tensor value = at::randn({1, 1, 40, 2}, at::kDouble);
  Tensors all() const { return {query, key, value}; }
};

TEST(SparseAttentionGradient, EqualsDifferences) {
  const Small s;
  expect_gradients(
      [&](const Tensors& x) {
        return weighed(sparse_attention(x[0], x[1], x[2], s.layout, {.enable_gqa = true}));
      },
      s.all());
}

TEST(SparseAttentionGradient, FlowsThroughTheLogSumExp) {
  const Small s;
  const auto both = [&](const Tensors& x) {
    const auto r = sparse_attention_with_lse(x[0], x[1], x[2], s.layout, {.enable_gqa = true});
    return weighed(r.output) + weighed(r.log_sum_exp);
  };
  expect_gradients(both, s.all());
  const auto sums_alone = [&](const Tensors& x) {
    return weighed(
        sparse_attention_with_lse(x[0], x[1], x[2], s.layout, {.enable_gqa = true}).log_sum_exp);
  };
  expect_gradients(sums_alone, s.all());
}

TEST(SparseAttentionGradient, FlowsToABias) {
  const Small s;
  for (const std::vector<int64_t>& shape :
       std::vector<std::vector<int64_t>>{{1, 2, 5, 40}, {5, 40}, {2, 1, 40}, {1, 2, 5, 1}}) {
    const auto loss = [&](const Tensors& x) {
      return weighed(
          sparse_attention(x[0], x[1], x[2], s.layout, {.enable_gqa = true, .bias = x[3]}));
    };
    auto values = s.all();
    values.push_back(at::randn(shape, at::kDouble));
    expect_gradients(loss, values);
  }
}

TEST(SparseAttentionGradient, FlowsThroughDropout) {
  const Small s;
  const auto loss = [&](const Tensors& x) {
    at::manual_seed(5);
    return weighed(
        sparse_attention(x[0], x[1], x[2], s.layout, {.enable_gqa = true, .dropout = 0.4}));
  };
  expect_gradients(loss, s.all());
}

TEST(SparseAttentionGradient, HasAGradient) {
  const Small s;
  // The derivative of a number made of the first derivatives.
  const auto loss = [&](const Tensors& x) {
    const auto r = sparse_attention_with_lse(x[0], x[1], x[2], s.layout, {.enable_gqa = true});
    const auto first =
        torch::autograd::grad({weighed(r.output.sin()) + weighed(r.log_sum_exp)}, x, {},
                              /*retain_graph=*/true, /*create_graph=*/true);
    return weighed(first[0]) + weighed(first[1]) + weighed(first[2]);
  };
  expect_gradients(loss, s.all());
}

TEST(SparseAttentionGradient, IsTheSameWhenItIsRecorded) {
  const Small s;
  const auto inputs = leaves(s.all());
  const auto loss =
      weighed(sparse_attention(inputs[0], inputs[1], inputs[2], s.layout, {.enable_gqa = true}));
  const auto plain = torch::autograd::grad({loss}, inputs, {}, /*retain_graph=*/true);
  const auto recorded = torch::autograd::grad({loss}, inputs, {}, true, /*create_graph=*/true);
  for (size_t i = 0; i < inputs.size(); ++i) {
    EXPECT_FALSE(plain[i].requires_grad());
    EXPECT_TRUE(recorded[i].requires_grad());
    EXPECT_TRUE(close(recorded[i].detach(), plain[i]));
  }
}

TEST(SparseAttentionGradient, IsLeftOutWhereNoneIsWanted) {
  const Small s;
  const auto query = s.query.clone().requires_grad_();
  const auto out = sparse_attention(query, s.key, s.value, s.layout, {.enable_gqa = true});
  EXPECT_TRUE(out.requires_grad());
  EXPECT_TRUE(torch::autograd::grad({out.sum()}, {query})[0].defined());
  EXPECT_FALSE(
      sparse_attention(s.query, s.key, s.value, s.layout, {.enable_gqa = true}).requires_grad());
}

}  // namespace
}  // namespace torchlore
