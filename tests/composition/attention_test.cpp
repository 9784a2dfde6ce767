// SparseAttentionScope beside every other stage: a run with it is the run whose attention adds the same
// mask by LibTorch's ops, and what saves memory or recomputes leaves a run with it as it is.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>
#include <torch/optim/adamw.h>

#include <filesystem>
#include <functional>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "composition/loops.hpp"
#include "torchlore/attention/block_layout.hpp"
#include "torchlore/attention/sparse_attention_scope.hpp"
#include "torchlore/intercept/op_mode.hpp"
#include "torchlore/memory/activation_budget.hpp"
#include "torchlore/memory/checkpoint.hpp"
#include "torchlore/privacy/per_sample.hpp"

namespace torchlore {
namespace {

namespace nn = torch::nn;

constexpr int kSteps = 6;
constexpr int64_t kBatch = 3, kLength = 70, kWidth = 16, kHeads = 2;

MaskSpec spec() { return mask::causal() & (mask::window(20) | mask::sinks(3)); }

SparseAttentionScope sparse() {
  return SparseAttentionScope(spec(), {.not_sparse = NotSparse::error, .allow_dense = false});
}

/// One layer of each kind of attention.
struct BlockImpl : nn::Module {
  explicit BlockImpl(double dropout)
      : three_ops(register_module(
            "three_ops", nn::MultiheadAttention(
                             nn::MultiheadAttentionOptions(kWidth, kHeads).dropout(dropout)))),
        qkv(register_module("qkv", nn::Linear(kWidth, 3 * kWidth))),
        norm(register_module("norm", nn::LayerNorm(nn::LayerNormOptions({kWidth})))),
        dropout_p(dropout) {}

  /// [T, B, C] -> [T, B, C]
  at::Tensor forward(at::Tensor x) {
    x = x + std::get<0>(three_ops(x, x, x));
    const auto parts =
        qkv(norm(x)).view({kLength, -1, 3, kHeads, kWidth / kHeads}).permute({2, 1, 3, 0, 4});
    const auto y = at::scaled_dot_product_attention(parts[0], parts[1], parts[2], {},
                                                    is_training() ? dropout_p : 0.0);
    return x + y.permute({2, 0, 1, 3}).reshape({kLength, -1, kWidth});
  }

  nn::MultiheadAttention three_ops;
  nn::Linear qkv;
  nn::LayerNorm norm;
  double dropout_p;
};
TORCH_MODULE(Block);

struct ModelImpl : nn::Module {
  explicit ModelImpl(double dropout)
      : first(register_module("first", Block(dropout))),
        second(register_module("second", Block(dropout))),
        head(register_module("head", nn::Linear(kWidth, 4))) {}
  Block first, second;
  nn::Linear head;
};
TORCH_MODULE(Model);

using Forward = std::function<at::Tensor(Model&, const at::Tensor&)>;

at::Tensor plain(Model& model, const at::Tensor& x) {
  return model->head(model->second(model->first(x)));
}

at::Tensor checkpointed(Model& model, const at::Tensor& x) {
  return model->head(checkpoint(model->second, checkpoint(model->first, x)));
}

template <typename Scope>
Forward inside(Scope make, Forward forward = plain) {
  return [make, forward](Model& model, const at::Tensor& x) {
    const auto scope = make();
    return forward(model, x);
  };
}

/// The scope's mask by LibTorch's ops alone.
struct AddMask : OpHandler {
  at::Tensor bias() const {
    auto shown = at::zeros({kLength, kLength}, at::kBool);
    for (int64_t q = 0; q < kLength; ++q) {
      for (int64_t k = 0; k < kLength; ++k) {
        shown[q][k] = spec().visible(q, k, {kLength, kLength});
      }
    }
    return at::zeros({kLength, kLength})
        .masked_fill(shown.logical_not(), -std::numeric_limits<double>::infinity());
  }
  at::Tensor softmax(const at::Tensor& input, int64_t dim,
                     std::optional<at::ScalarType> dtype) override {
    return OpHandler::softmax(input + mask.to(input.scalar_type()), dim, dtype);
  }
  at::Tensor scaled_dot_product_attention(const AttentionCall& call) override {
    auto changed = call;
    changed.attn_mask = mask.to(call.query.scalar_type());
    return changed.run();
  }
  at::Tensor mask = bias();
};

struct Outcome {
  std::vector<double> losses;
  at::Tensor parameters;
};

Outcome train(const TrainingStepOptions& options, const Forward& forward, double dropout = 0) {
  at::set_num_threads(1);
  at::manual_seed(11);
  Model model(dropout);
  const auto x = at::randn({kLength, kBatch, kWidth});
  const auto y = at::randint(4, {kLength * kBatch}, at::kLong);
  torch::optim::AdamW optimizer(model->parameters(), torch::optim::AdamWOptions(0.01));
  TrainingStep step(optimizer, options);
  Outcome outcome;
  for (int i = 0; i < kSteps; ++i) {
    const auto loss = [&] {
      return nn::functional::cross_entropy(forward(model, x).flatten(0, 1), y);
    };
    outcome.losses.push_back(step(loss).loss());
  }
  step.finish();
  std::vector<at::Tensor> flat;
  for (const auto& p : model->parameters()) flat.push_back(p.detach().reshape(-1));
  outcome.parameters = at::cat(flat);
  return outcome;
}

class AttentionBesideLoop : public ::testing::TestWithParam<testing::Loop> {};

TEST_P(AttentionBesideLoop, TrainsAsWithTheMaskAdded) {
  const auto by_ops = inside([] { return OpMode(std::make_shared<AddMask>()); });
  const auto expected = train(GetParam().options, by_ops);
  const auto ours = train(GetParam().options, inside(sparse));
  const bool half = GetParam().options.precision.dtype().has_value();
  for (int i = 0; i < kSteps; ++i) {
    const auto n = static_cast<size_t>(i);
    EXPECT_NEAR(ours.losses[n], expected.losses[n], half ? 2e-2 : 1e-4) << "step " << i;
  }
  if (!half) {
    EXPECT_LE((ours.parameters - expected.parameters).abs().max().item<double>(), 2e-3);
  }
}

INSTANTIATE_TEST_SUITE_P(Loops, AttentionBesideLoop, ::testing::ValuesIn(testing::loops()),
                         [](const auto& row) { return row.param.name; });

/// What moves, rounds or computes activations again.
struct Way {
  std::string name;
  Forward forward = inside(sparse);
  Activations activations = Activations::keep();
  double tolerance = 0;  // of losses; 0: bit for bit
};

void PrintTo(const Way& way, std::ostream* out) { *out << way.name; }

std::vector<Way> ways() {
  const auto verified = [](Model& model, const at::Tensor& x) {
    const CheckpointOptions verify{.verify = true};
    return model->head(checkpoint(verify, model->second, checkpoint(verify, model->first, x)));
  };
  const auto scopes_in_blocks = [](Model& model, const at::Tensor& x) {
    const auto block = [](Block b) {
      return [b](const at::Tensor& t) mutable {
        const auto scope = sparse();
        return b(t);
      };
    };
    return model->head(checkpoint(block(model->second), checkpoint(block(model->first), x)));
  };
  return {
      {.name = "checkpoint", .forward = inside(sparse, checkpointed)},
      {.name = "verified_checkpoint", .forward = inside(sparse, verified)},
      {.name = "scope_inside_the_block", .forward = scopes_in_blocks},
      {.name = "budget", .activations = Activations::budget(Bytes(0))},
      {.name = "budget_and_checkpoint",
       .forward = inside(sparse, checkpointed),
       .activations = Activations::budget(Bytes(0))},
      {.name = "offload",
       .activations = Activations::offload(
           {.folder = std::filesystem::temp_directory_path(), .min_bytes = 0})},
      {.name = "compress",
       .activations = Activations::compress(at::kBFloat16, {.min_bytes = 0}),
       .tolerance = 2e-2},
  };
}

class AttentionBesideWay : public ::testing::TestWithParam<std::tuple<Way, double>> {};

TEST_P(AttentionBesideWay, LeavesTheTrainingAsItIs) {
  const auto& [way, dropout] = GetParam();
  for (const auto& loop : {testing::loops().front(), testing::loops().back()}) {
    SCOPED_TRACE(loop.name);
    auto options = loop.options;
    const auto without = train(options, inside(sparse), dropout);
    options.activations = way.activations;
    const auto with = train(options, way.forward, dropout);
    for (int i = 0; i < kSteps; ++i) {
      const auto n = static_cast<size_t>(i);
      EXPECT_NEAR(with.losses[n], without.losses[n], way.tolerance) << "step " << i;
    }
    if (way.tolerance == 0) {
      EXPECT_TRUE(at::equal(with.parameters, without.parameters));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Ways, AttentionBesideWay,
                         ::testing::Combine(::testing::ValuesIn(ways()),
                                            ::testing::Values(0.0, 0.2)),
                         [](const auto& row) {
                           return std::get<0>(row.param).name +
                                  (std::get<1>(row.param) > 0 ? "_dropout" : "");
                         });

TEST(AttentionBeside, ActivationBudgetComputesItAgain) {
  at::manual_seed(11);
  Model model(0.0);
  const auto x = at::randn({kLength, kBatch, kWidth});
  std::shared_ptr<const ActivationBudgetStats> stats;
  at::Tensor loss;
  {
    const ActivationBudget budget(Bytes(0), {.verify = true});
    stats = budget.stats();
    const auto scope = sparse();
    loss = plain(model, x).pow(2).sum();
  }
  loss.backward();
  EXPECT_GT(stats->replayed_ops, 0);
  EXPECT_GT(stats->verified, 0);
  EXPECT_EQ(stats->mismatched, 0);
}

/// A layer for examples [B, T, C].
struct ByExampleImpl : nn::Module {
  ByExampleImpl()
      : qkv(register_module("qkv", nn::Linear(kWidth, 3 * kWidth))),
        head(register_module("head", nn::Linear(kWidth, 4))) {}
  at::Tensor losses(const at::Tensor& x) {
    const auto parts =
        qkv(x).view({-1, kLength, 3, kHeads, kWidth / kHeads}).permute({2, 0, 3, 1, 4});
    const auto y = at::scaled_dot_product_attention(parts[0], parts[1], parts[2]);
    return head(y.transpose(1, 2).flatten(2)).pow(2).sum({1, 2});
  }
  nn::Linear qkv, head;
};
TORCH_MODULE(ByExample);

TEST(AttentionBeside, PerSampleGradientsAreThoseOfEachExample) {
  at::manual_seed(11);
  ByExample model;
  const auto x = at::randn({kBatch, kLength, kWidth});
  const auto scope = sparse();
  const auto all = per_sample_grads(model->losses(x), *model);
  for (int64_t b = 0; b < kBatch; ++b) {
    model->zero_grad();
    model->losses(x.narrow(0, b, 1)).sum().backward();
    for (const auto& one : all) {
      const auto alone = one.parameter.grad();
      EXPECT_LE((one.gradients[b] - alone).abs().max().item<double>(),
                1e-4 * (1 + alone.abs().max().item<double>()))
          << one.name << " of example " << b;
    }
  }
}

TEST(AttentionBeside, ActivationBudgetInsideIsRefused) {
  const auto scope = sparse();
  EXPECT_THROW(ActivationBudget(Bytes(0)), c10::Error);
}

}  // namespace
}  // namespace torchlore
