// One op of the dispatcher: what sees it, and what it survives.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/handlers.hpp"
#include "support/tolerance.hpp"
#include "torchlore/attention/sparse_attention.hpp"
#include "torchlore/intercept/op_mode.hpp"
#include "torchlore/intercept/saved_tensor_scope.hpp"
#include "torchlore/intercept/tape.hpp"
#include "torchlore/memory/activation_budget.hpp"
#include "torchlore/memory/checkpoint.hpp"
#include "torchlore/precision/autocast.hpp"

namespace torchlore {
namespace {

using at::Tensor;
using testing::close;
using testing::same;

const BlockLayout& layout() {
  static const auto built =
      BlockLayout::build(mask::causal() & (mask::window(30) | mask::sinks(2)), 150, 150);
  return built;
}

/// A layer with attention in it: x [150, 16] and three weights [16, 16], two heads.
struct Layer {
  Tensor q = at::randn({16, 16}).requires_grad_();
  Tensor k = at::randn({16, 16}).requires_grad_();
  Tensor v = at::randn({16, 16}).requires_grad_();
  double dropout = 0;

  Tensor operator()(const Tensor& x) const {
    const auto heads = [&](const Tensor& w) {
      return at::matmul(x, w).view({1, 150, 2, 8}).transpose(1, 2);
    };
    const auto out = sparse_attention(heads(q), heads(k), heads(v), layout(), {.dropout = dropout});
    return out.transpose(1, 2).reshape({150, 16});
  }
  std::vector<Tensor> gradients(const Tensor& loss) const {
    return torch::autograd::grad({loss}, {q, k, v});
  }
};

void expect_same(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(same(a[i], b[i]));
}

class SparseAttentionOp : public ::testing::Test {
 protected:
  // So small that threads would only wait for each other.
  static void SetUpTestSuite() { at::set_num_threads(1); }
};

TEST_F(SparseAttentionOp, IsSeenWholeAndOnce) {
  const Layer layer;
  const auto x = at::randn({150, 16});
  testing::Trace trace;
  Tensor loss;
  {
    const OpMode mode(trace);
    loss = layer(x).sum();
  }
  EXPECT_EQ(std::count(trace.names.begin(), trace.names.end(), "torchlore::sparse_attention"), 1);
  // Nothing of what it is made of.
  EXPECT_EQ(std::count(trace.names.begin(), trace.names.end(), "aten::index_select"), 0);
  trace.names.clear();
  {
    const OpMode mode(trace);
    layer.gradients(loss);
  }
  EXPECT_EQ(
      std::count(trace.names.begin(), trace.names.end(), "torchlore::sparse_attention_backward"),
      1);
}

TEST_F(SparseAttentionOp, ShowsItsProductsToNoHandler) {
  struct CountProducts : OpHandler {
    int64_t count = 0;
    Tensor matmul(const Tensor& a, const Tensor& b) override {
      ++count;
      return OpHandler::matmul(a, b);
    }
  } handler;
  const OpMode mode(handler);
  const auto x = at::randn({1, 1, 150, 300});  // more than the compiled kernels take
  sparse_attention(x, x, x, layout());
  EXPECT_EQ(handler.count, 0);
}

TEST_F(SparseAttentionOp, IsOnTheTapeWithItsEdges) {
  const Layer layer;
  const auto tape = Tape::of(layer(at::randn({150, 16})).sum());
  EXPECT_EQ(tape.unknown().size(), 1U);
  EXPECT_EQ(tape.parameters().size(), 3U);
  for (const auto& parameter : tape.parameters()) {
    ASSERT_EQ(parameter.uses.size(), 1U);
    EXPECT_EQ(tape.node(parameter.uses[0].node).op, TapeOp::mm);
  }
}

TEST_F(SparseAttentionOp, IsCastByAutocast) {
  const auto x = at::randn({1, 2, 150, 8});
  const auto low = x.to(at::kBFloat16);
  const Autocast amp(at::kCPU, at::kBFloat16);
  const auto result = sparse_attention_with_lse(x, low, x, layout());
  EXPECT_EQ(result.output.scalar_type(), at::kBFloat16);
  EXPECT_EQ(result.log_sum_exp.scalar_type(), at::kFloat);
  EXPECT_TRUE(same(result.output, sparse_attention(low, low, low, layout())));
  const auto wide = x.to(at::kDouble);
  EXPECT_EQ(sparse_attention(wide, wide, wide, layout()).scalar_type(), at::kDouble);
}

TEST_F(SparseAttentionOp, GetsItsGradientsThroughAutocast) {
  const Layer layer;
  const auto x = at::randn({150, 16});
  Tensor loss;
  {
    const Autocast amp(at::kCPU, at::kBFloat16);
    loss = layer(x).sum();
  }
  const auto low = layer.gradients(loss);
  const auto full = layer.gradients(layer(x).sum());
  for (size_t i = 0; i < low.size(); ++i) {
    EXPECT_EQ(low[i].scalar_type(), at::kFloat);
    EXPECT_LT(((low[i] - full[i]).norm() / full[i].norm()).item<double>(), 0.1);
  }
}

TEST_F(SparseAttentionOp, LetsOthersKeepWhatItSaves) {
  const Layer layer;
  const auto x = at::randn({150, 16});
  const auto plain = layer.gradients(layer(x).sum());
  int64_t saved = 0;
  Tensor loss;
  {
    const SavedTensorScope scope(
        [&](const Tensor& t) {
          ++saved;
          return t.clone();
        },
        [](const Tensor& t) { return t; });
    const auto x4 = at::randn({1, 2, 150, 8}).requires_grad_();
    const auto before = saved;
    sparse_attention(x4, x4, x4, layout());
    EXPECT_EQ(saved - before, 5);  // query, key, value, output, log-sum-exp
    loss = layer(x).sum();
  }
  expect_same(layer.gradients(loss), plain);
}

TEST_F(SparseAttentionOp, IsRecomputedByCheckpointWithItsDropout) {
  for (const double dropout : {0.0, 0.4}) {
    Layer layer;
    layer.dropout = dropout;
    const auto x = at::randn({150, 16});
    at::manual_seed(1);
    const auto plain = layer.gradients(layer(x).sum());
    at::manual_seed(1);
    expect_same(layer.gradients(checkpoint(layer, x).sum()), plain);
  }
}

TEST_F(SparseAttentionOp, IsKeptByCheckpointByName) {
  const Layer layer;
  const auto x = at::randn({150, 16});
  const auto plain = layer.gradients(layer(x).sum());
  const CheckpointOptions keep{
      .keep = [](const std::string& op) { return op == "torchlore::sparse_attention"; }};
  expect_same(layer.gradients(checkpoint(keep, layer, x).sum()), plain);
}

TEST_F(SparseAttentionOp, IsFreedWhenAHookThrows) {
  const auto x = at::randn({1, 2, 150, 8}).requires_grad_();
  std::optional<c10::weak_intrusive_ptr<c10::TensorImpl, at::UndefinedTensorImpl>> output;
  {
    const SavedTensorScope scope(
        [&](const Tensor& t) -> Tensor {
          if (t.dim() == 3) throw std::runtime_error("enough");  // the log-sum-exp, the last one
          if (!t.is_same(x)) output.emplace(t.getIntrusivePtr());
          return t;
        },
        [](const Tensor& t) { return t; });
    EXPECT_THROW(sparse_attention(x, x, x, layout()), std::runtime_error);
  }
  ASSERT_TRUE(output.has_value());
  EXPECT_TRUE(output->expired());
}

TEST_F(SparseAttentionOp, IsRecomputedUnderABudgetWithItsDropout) {
  for (const double dropout : {0.0, 0.4}) {
    Layer layer;
    layer.dropout = dropout;
    const auto x = at::randn({150, 16});
    at::manual_seed(1);
    const auto plain = layer.gradients(layer(layer(x)).sum());
    at::manual_seed(1);
    Tensor loss;
    std::shared_ptr<const ActivationBudgetStats> stats;
    {
      ActivationBudget budget(KiB(40));
      loss = layer(layer(x)).sum();
      stats = budget.stats();
    }
    EXPECT_GT(stats->evictions, 0);
    expect_same(layer.gradients(loss), plain);
  }
}

}  // namespace
}  // namespace torchlore
