// Blocks of every kind, in several dtypes: gradients, buffers and random numbers are those of the plain
// call, bit for bit.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/any_module_holder.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/instancenorm.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>
#include <torch/nn/modules/pooling.h>
#include <torch/nn/modules/rnn.h>
#include <torch/nn/modules/transformerlayer.h>

#include "checkpoint_support.hpp"
#include "torchlore/memory/checkpoint.hpp"

namespace torchlore {
namespace {

using testing::same;
namespace nn = torch::nn;

/// A forward pass through a model, plain or checkpointed: `run(block, args...)` calls a block.
template <typename Model>
at::Tensor loss_of(Model& model, const at::Tensor& x, bool checkpointed) {
  return model(x, [&](auto& block, const auto&... args) {
    if constexpr (requires { block->forward(args...); }) {
      return checkpointed ? checkpoint(block, args...) : block->forward(args...);
    } else {
      return checkpointed ? checkpoint(block, args...) : block(args...);
    }
  });
}

struct Trained {
  std::vector<at::Tensor> gradients;
  std::vector<at::Tensor> buffers;
  at::Tensor loss;
  at::Tensor next;  // random number
};

/// Two steps, so that what the first one leaves in the buffers counts.
template <typename Make>
Trained train(const Make& make, at::Tensor x, at::ScalarType dtype, bool checkpointed) {
  at::manual_seed(5);
  auto [module, model] = make();
  module->to(dtype);
  if (x.is_floating_point()) x = x.detach().clone().to(dtype).requires_grad_(true);
  Trained result;
  for (int step = 0; step < 2; ++step) {
    result.loss = loss_of(model, x, checkpointed);
    result.loss.backward();
  }
  result.next = at::rand({3});
  for (const auto& p : module->parameters()) result.gradients.push_back(p.grad());
  if (x.requires_grad()) result.gradients.push_back(x.grad());
  result.buffers = module->buffers();
  return result;
}

void expect_equal(const std::vector<at::Tensor>& actual, const std::vector<at::Tensor>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_EQ(actual[i].defined(), expected[i].defined()) << i;
    if (!expected[i].defined()) continue;
    EXPECT_TRUE(same(actual[i], expected[i])) << i;
  }
}

/// `make()` gives a module and its loss.
template <typename Make>
void expect_same_training(const Make& make, const at::Tensor& x,
                          const std::vector<at::ScalarType>& dtypes = {at::kFloat, at::kDouble,
                                                                       at::kBFloat16}) {
  for (const auto dtype : dtypes) {
    SCOPED_TRACE(c10::toString(dtype));
    const auto plain = train(make, x, dtype, false);
    const auto ours = train(make, x, dtype, true);
    EXPECT_TRUE(same(ours.loss, plain.loss));
    EXPECT_TRUE(same(ours.next, plain.next));
    expect_equal(ours.gradients, plain.gradients);
    expect_equal(ours.buffers, plain.buffers);
    double sum = 0;
    for (const auto& g : plain.gradients) {
      if (g.defined()) sum += g.abs().sum().template item<double>();
    }
    EXPECT_GT(sum, 0);
  }
}

/// One block whose output is a tensor.
template <typename Block>
auto alone(const Block& make_block) {
  return [make_block] {
    auto block = make_block();
    std::shared_ptr<nn::Module> module = block.ptr();
    auto model = [block](const at::Tensor& x, const auto& run) mutable {
      return run(block, x).square().mean();
    };
    return std::make_pair(module, model);
  };
}

TEST(CheckpointModules, TransformerLayerWithDropout) {
  expect_same_training(
      alone([] {
        return nn::TransformerEncoderLayer(
            nn::TransformerEncoderLayerOptions(16, 4).dim_feedforward(32).dropout(0.2));
      }),
      at::randn({5, 3, 16}));
}

TEST(CheckpointModules, ConvolutionAndBatchNormUpdateTheStatisticsOnce) {
  expect_same_training(alone([] {
                         return nn::Sequential(
                             nn::Conv2d(nn::Conv2dOptions(3, 8, 3).padding(1)), nn::BatchNorm2d(8),
                             nn::ReLU(nn::ReLUOptions(true)),
                             nn::Conv2d(nn::Conv2dOptions(8, 8, 3).groups(2).bias(false)),
                             nn::BatchNorm2d(nn::BatchNormOptions(8).momentum(std::nullopt)),
                             nn::MaxPool2d(2));
                       }),
                       at::randn({4, 3, 9, 9}));
}

TEST(CheckpointModules, SeveralForwardPassesMayComeBeforeBackward) {
  nn::Sequential plain(nn::BatchNorm1d(6), nn::Tanh());
  nn::Sequential block(nn::BatchNorm1d(6), nn::Tanh());
  const auto x = at::randn({8, 6});
  const auto y = at::randn({8, 6}) * 3;
  (plain->forward(x) + plain->forward(y)).sum().backward();
  (checkpoint(block, x) + checkpoint(block, y)).sum().backward();
  expect_equal(block->buffers(), plain->buffers());
}

TEST(CheckpointModules, BatchNormInALambdaByItsBuffers) {
  const auto x = at::randn({8, 6});
  nn::BatchNorm1d plain(6);
  nn::BatchNorm1d norm(6);
  const auto block = [norm](const at::Tensor& t) mutable { return norm->forward(t).tanh().exp(); };
  for (int step = 0; step < 2; ++step) {
    plain->forward(x).tanh().exp().sum().backward();
    checkpoint({.buffers = norm->buffers()}, block, x).sum().backward();
  }
  expect_equal(norm->buffers(), plain->buffers());
  EXPECT_TRUE(same(norm->weight.grad(), plain->weight.grad()));
}

TEST(CheckpointModules, WithoutKeepBuffersTheRecomputationWritesThemToo) {
  nn::Sequential block(nn::BatchNorm1d(6), nn::Tanh());
  const auto count = block->buffers().at(2);
  const auto x = at::randn({8, 6}).requires_grad_(true);
  checkpoint({.keep_buffers = false}, block, x).sum().backward();
  EXPECT_EQ(count.item<int64_t>(), 2);
  checkpoint(block, x).sum().backward();
  EXPECT_EQ(count.item<int64_t>(), 3);
}

TEST(CheckpointModules, OtherNorms) {
  expect_same_training(
      alone([] {
        return nn::Sequential(
            nn::InstanceNorm1d(nn::InstanceNorm1dOptions(8).affine(true).track_running_stats(true)),
            nn::GroupNorm(nn::GroupNormOptions(2, 8)), nn::LayerNorm(nn::LayerNormOptions({6})),
            nn::SiLU());
      }),
      at::randn({4, 8, 6}));
}

TEST(CheckpointModules, LstmWithItsState) {
  const auto make = [] {
    nn::LSTM lstm(nn::LSTMOptions(6, 8).num_layers(2).dropout(0.3));
    auto model = [lstm](const at::Tensor& x, const auto& run) mutable {
      using State = std::optional<std::tuple<at::Tensor, at::Tensor>>;
      auto [first, state] = run(lstm, x, State());
      auto [second, last] = run(lstm, x, State(state));
      return first.square().mean() + second.mean() + std::get<1>(last).sum();
    };
    return std::make_pair(std::shared_ptr<nn::Module>(lstm.ptr()), model);
  };
  expect_same_training(make, at::randn({5, 3, 6}), {at::kFloat, at::kDouble});
}

TEST(CheckpointModules, GruAndLstmCell) {
  const auto make = [] {
    nn::Sequential holder;
    nn::GRU gru(nn::GRUOptions(6, 6).bidirectional(true));
    nn::LSTMCell cell(12, 4);
    auto module = std::make_shared<nn::Module>();
    module->register_module("gru", gru);
    module->register_module("cell", cell);
    auto model = [gru, cell](const at::Tensor& x, const auto& run) mutable {
      auto [y, h] = run(gru, x);
      std::optional<std::tuple<at::Tensor, at::Tensor>> state;
      for (int64_t t = 0; t < y.size(0); ++t) state = run(cell, y[t], state);
      return std::get<0>(*state).square().mean();
    };
    return std::make_pair(module, model);
  };
  expect_same_training(make, at::randn({5, 3, 6}), {at::kFloat, at::kDouble});
}

TEST(CheckpointModules, EmbeddingAndLinear) {
  expect_same_training(alone([] {
                         return nn::Sequential(nn::Embedding(11, 8),
                                               nn::Linear(nn::LinearOptions(8, 8).bias(false)),
                                               nn::GELU(), nn::Linear(8, 3), nn::LogSoftmax(-1));
                       }),
                       at::randint(11, {4, 6}));
}

TEST(CheckpointModules, MultiheadAttentionWithAMask) {
  const auto make = [] {
    nn::MultiheadAttention attention(nn::MultiheadAttentionOptions(8, 2).dropout(0.1));
    auto model = [attention](const at::Tensor& x, const auto& run) mutable {
      const auto mask = at::triu(at::full({5, 5}, -1e4, x.options()), 1);
      auto [y, weights] = run(attention, x, x, x, at::Tensor(), true, mask);
      return y.square().mean() + weights.square().sum();
    };
    return std::make_pair(std::shared_ptr<nn::Module>(attention.ptr()), model);
  };
  expect_same_training(make, at::randn({5, 3, 8}));
}

TEST(CheckpointModules, SharedPointersAndAnyModules) {
  const auto x = testing::leaf({3, 4});
  auto linear = std::make_shared<nn::LinearImpl>(4, 2);
  testing::expect_same_gradients(
      {x, linear->weight}, [&] { return linear->forward(x).square().sum(); },
      [&] { return checkpoint(linear, x).square().sum(); });
  nn::AnyModule any(nn::Linear(4, 2));
  testing::expect_same_gradients(
      {x}, [&] { return any.forward(x).square().sum(); },
      [&] { return checkpoint(any, x).square().sum(); });
}

/// Its output depends on a buffer that the forward pass itself moves, as in spectral norm.
struct PowerIterationImpl : nn::Module {
  PowerIterationImpl() {
    weight = register_parameter("weight", at::randn({4, 4}));
    u = register_buffer("u", at::ones({4}));
  }
  at::Tensor forward(const at::Tensor& x) {
    {
      const at::NoGradGuard no_grad;
      u.copy_(weight.mv(u).div_(u.norm() + 1));
    }
    return x.matmul(weight / u.clone().dot(weight.mv(u.clone())));
  }
  at::Tensor weight, u;
};
TORCH_MODULE(PowerIteration);

TEST(CheckpointModules, ABufferThatTheOutputDependsOnIsRewound) {
  expect_same_training(alone([] { return PowerIteration(); }), at::randn({3, 4}),
                       {at::kFloat, at::kDouble});
}

}  // namespace
}  // namespace torchlore
