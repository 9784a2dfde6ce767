#include "torchlore/privacy/per_sample.hpp"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/instancenorm.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include <cmath>
#include <limits>
#include <thread>
#include <utility>

#include "privacy/private_cases.hpp"
#include "support/message.hpp"
#include "torchlore/memory/checkpoint.hpp"
#include "torchlore/precision/autocast.hpp"

namespace torchlore {
namespace {

namespace nn = torch::nn;
using testing::Case;
using testing::chain;
using testing::jiggled;
using testing::layer;
using testing::message_of;
using testing::random_input;

class PerSample : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override { at::set_num_threads(1); }  // thousands of tiny ops
};

TEST_P(PerSample, IsThatOfALoopInDouble) {
  testing::expect_equal_to_loop(built(GetParam(), at::kDouble));
}
TEST_P(PerSample, IsThatOfALoopInFloat) {
  testing::expect_equal_to_loop(built(GetParam(), at::kFloat));
}

using testing::case_name;

std::vector<Case> linear_cases() {
  const auto linear = [] { return nn::Linear(3, 4); };
  return {
      layer<nn::Linear>("Linear2d", linear, random_input({5, 3})),
      layer<nn::Linear>("Linear2dOneExample", linear, random_input({1, 3})),
      layer<nn::Linear>(
          "LinearNoBias", [] { return nn::Linear(nn::LinearOptions(3, 4).bias(false)); },
          random_input({5, 3})),
      layer<nn::Linear>("Linear3d", linear, random_input({5, 6, 3})),
      layer<nn::Linear>("Linear3dBatchSecond", linear, random_input({6, 5, 3}), 1),
      layer<nn::Linear>("Linear3dSquare", linear, random_input({5, 5, 3}), 1),
      layer<nn::Linear>("Linear4d", linear, random_input({2, 5, 4, 3}), 1),
      layer<nn::Linear>("Linear5d", linear, random_input({2, 2, 3, 2, 3}), 2),
      chain("Stack", random_input({6, 3}), 0, 0,
            [] { return nn::Sequential(nn::Linear(3, 7), nn::Tanh(), nn::Linear(7, 2)); }),
  };
}
INSTANTIATE_TEST_SUITE_P(Linear, PerSample, ::testing::ValuesIn(linear_cases()), case_name);

std::vector<Case> convolution_cases() {
  using O1 = nn::Conv1dOptions;
  using O2 = nn::Conv2dOptions;
  using O3 = nn::Conv3dOptions;
  const auto image = random_input({3, 4, 6, 5});
  const auto conv2 = [&](std::string name, const O2& options) {
    return layer<nn::Conv2d>(
        std::move(name), [=] { return nn::Conv2d(options); }, image);
  };
  return {
      layer<nn::Conv1d>(
          "Conv1d", [] { return nn::Conv1d(O1(3, 2, 3)); }, random_input({4, 3, 7})),
      layer<nn::Conv3d>(
          "Conv3d", [] { return nn::Conv3d(O3(2, 2, 2).stride(2)); },
          random_input({3, 2, 4, 3, 4})),
      conv2("Conv2d", O2(4, 3, 3)),
      conv2("Conv2dNoBias", O2(4, 3, 3).bias(false)),
      conv2("Conv2dStrided", O2(4, 3, {3, 2}).stride({2, 1}).padding({1, 0})),
      conv2("Conv2dDilated", O2(4, 3, 2).dilation({2, 1})),
      conv2("Conv2dGrouped", O2(4, 6, 3).groups(2)),
      conv2("Conv2dDepthwise", O2(4, 8, 3).groups(4)),
      conv2("Conv2dSame", O2(4, 3, 3).padding(torch::kSame)),
      conv2("Conv2dSameUneven", O2(4, 3, 2).padding(torch::kSame)),
      conv2("Conv2dZeros", O2(4, 3, 3).padding(2)),
      conv2("Conv2dReflect", O2(4, 3, 3).padding(1).padding_mode(torch::kReflect)),
      conv2("Conv2dReplicate", O2(4, 3, 3).padding(1).padding_mode(torch::kReplicate)),
      conv2("Conv2dCircular", O2(4, 3, 3).padding(1).padding_mode(torch::kCircular)),
      layer<nn::ConvTranspose1d>(
          "Transposed1d",
          [] { return nn::ConvTranspose1d(nn::ConvTranspose1dOptions(3, 2, 3).stride(2)); },
          random_input({3, 3, 4})),
      layer<nn::ConvTranspose2d>(
          "Transposed2d",
          [] {
            return nn::ConvTranspose2d(
                nn::ConvTranspose2dOptions(4, 6, 3).stride(2).padding(1).output_padding(1).groups(
                    2));
          },
          image),
      layer<nn::ConvTranspose3d>(
          "Transposed3d",
          [] { return nn::ConvTranspose3d(nn::ConvTranspose3dOptions(2, 1, 2).dilation(2)); },
          random_input({2, 2, 2, 3, 2})),
      {"OverTime", [] { return nn::Conv1d(O1(3, 2, 2)).ptr(); }, random_input({4, 5, 3, 6}), 1, 1,
       [](nn::Module& m, const at::Tensor& x) {  // frames of examples: [T·B, 3, 6]
         const auto y = dynamic_cast<nn::Conv1dImpl&>(m).forward(x.flatten(0, 1));
         return y.view({x.size(0), x.size(1), 2, 5});
       }},
  };
}
INSTANTIATE_TEST_SUITE_P(Convolution, PerSample, ::testing::ValuesIn(convolution_cases()),
                         case_name);

at::Tensor tokens() {
  return at::tensor(std::vector<int64_t>{1, 3, 1, 0, 4, 2, 2, 2, 2, 0, 1, 1}).view({4, 3});
}

std::vector<Case> embedding_cases() {
  const auto plain = [] { return nn::Embedding(6, 3); };
  return {
      layer<nn::Embedding>("Embedding", plain, tokens()),
      layer<nn::Embedding>("EmbeddingBatchSecond", plain, tokens().t().contiguous(), 1),
      layer<nn::Embedding>("EmbeddingOneToken", plain, tokens().select(1, 0).contiguous()),
      layer<nn::Embedding>(
          "EmbeddingPadded",
          [] { return nn::Embedding(nn::EmbeddingOptions(6, 3).padding_idx(1)); }, tokens()),
      layer<nn::EmbeddingBag>(
          "BagMean", [] { return nn::EmbeddingBag(6, 3); }, tokens()),
      layer<nn::EmbeddingBag>(
          "BagSum",
          [] { return nn::EmbeddingBag(nn::EmbeddingBagOptions(6, 3).mode(torch::kSum)); },
          tokens()),
      layer<nn::EmbeddingBag>(
          "BagMax",
          [] { return nn::EmbeddingBag(nn::EmbeddingBagOptions(6, 3).mode(torch::kMax)); },
          tokens()),
      {"BagWeighted",
       [] { return nn::EmbeddingBag(nn::EmbeddingBagOptions(6, 3).mode(torch::kSum)).ptr(); },
       tokens(), 0, 0,
       [](nn::Module& m, const at::Tensor& x) {
         const auto weight = m.parameters()[0];
         return dynamic_cast<nn::EmbeddingBagImpl&>(m).forward(x, {},
                                                               x.to(weight.scalar_type()).add(0.5));
       }},
  };
}
INSTANTIATE_TEST_SUITE_P(Embedding, PerSample, ::testing::ValuesIn(embedding_cases()), case_name);

std::vector<Case> norm_cases() {
  const auto image = random_input({3, 4, 2, 3});
  return {
      layer<nn::LayerNorm>(
          "LayerNorm", [] { return jiggled(nn::LayerNorm(nn::LayerNormOptions({4}))); },
          random_input({3, 4})),
      layer<nn::LayerNorm>(
          "LayerNormBatchSecond", [] { return jiggled(nn::LayerNorm(nn::LayerNormOptions({4}))); },
          random_input({5, 3, 4}), 1),
      layer<nn::LayerNorm>(
          "LayerNorm2d",
          [] {
            return jiggled(nn::LayerNorm(nn::LayerNormOptions({2, 4})));
          },
          random_input({3, 2, 4})),
      layer<nn::GroupNorm>(
          "GroupNorm", [] { return jiggled(nn::GroupNorm(2, 4)); }, image),
      layer<nn::InstanceNorm2d>(
          "InstanceNorm",
          [] { return jiggled(nn::InstanceNorm2d(nn::InstanceNorm2dOptions(4).affine(true))); },
          image),
      layer<nn::BatchNorm2d>(
          "BatchNormEvaluated",
          [] {
            auto norm = jiggled(nn::BatchNorm2d(4));
            norm->forward(at::randn({6, 4, 2, 3}));
            norm->eval();
            return norm;
          },
          image),
      chain("Network", random_input({3, 2, 6, 5}), 0, 0,
            [] {
              return nn::Sequential(
                  nn::Conv2d(nn::Conv2dOptions(2, 4, 3).padding(1)), jiggled(nn::GroupNorm(2, 4)),
                  nn::GELU(), nn::Conv2d(nn::Conv2dOptions(4, 3, 3).stride(2)), nn::Flatten(),
                  nn::Linear(12, 4), jiggled(nn::LayerNorm(nn::LayerNormOptions({4}))));
            }),
  };
}
INSTANTIATE_TEST_SUITE_P(Norms, PerSample, ::testing::ValuesIn(norm_cases()), case_name);

// ------------------------------------------------------------------ what is refused

at::Tensor row_losses(const at::Tensor& output) { return output.square().sum(1); }

TEST(PerSampleInput, MustBeOneLossPerExample) {
  nn::Linear model(3, 2);
  const auto reduced = model->forward(at::randn({4, 3})).mean();
  EXPECT_EQ(message_of<c10::ValueError>([&] { per_sample_norms(reduced, *model); }),
            "the losses must be one per example, [B], but their shape is []; make the loss with "
            "reduction none, and sum or average over all other dimensions");
  EXPECT_EQ(message_of<c10::ValueError>([&] { per_sample_norms({}, *model); }),
            "the losses are an undefined tensor");
}

TEST(PerSampleInput, FrozenParametersAreLeftOut) {
  nn::Sequential model(nn::Linear(3, 4), nn::Linear(4, 2));
  model->named_parameters()["0.weight"].set_requires_grad(false);
  const auto found = per_sample_grads(row_losses(model->forward(at::randn({4, 3}))), *model);
  ASSERT_EQ(found.size(), 3u);
  EXPECT_EQ(found[0].name, "0.bias");
  for (auto& parameter : model->parameters()) parameter.set_requires_grad(false);
  EXPECT_EQ(
      message_of<c10::ValueError>(
          [&] { per_sample_norms(at::randn({3}).requires_grad_(), *model); }),
      "the model has no trainable parameter; unfreeze one, or pass the model that was called");
}

TEST(PerSampleInput, AllLeavesMustBeTheModels) {
  nn::Linear model(3, 2), other(2, 2);
  const auto losses = row_losses(other->forward(model->forward(at::randn({4, 3}))));
  EXPECT_EQ(message_of<c10::ValueError>([&] { per_sample_norms(losses, *model); }),
            "the losses depend on a tensor of shape [2, 2] that requires a gradient and is no "
            "parameter of the model; pass the model that holds it, or detach it");
}

TEST(PerSampleInput, BatchNormIsRefusedByName) {
  nn::Sequential model(nn::Linear(3, 4), nn::BatchNorm1d(4), nn::Linear(4, 2));
  const auto text = message_of<c10::NotImplementedError>([&] {
    per_sample_norms(row_losses(model->forward(at::randn({6, 3}))), *model);
  });
  EXPECT_NE(text.find("(NativeBatchNormBackward0) normalizes with statistics of the batch, which "
                      "mixes the examples"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("use GroupNorm or LayerNorm instead"), std::string::npos) << text;
}

TEST(PerSampleInput, MixedExamplesAreFound) {
  nn::Sequential model(nn::Linear(3, 4));
  auto h = model->forward(at::randn({6, 3}));
  const auto text = message_of<c10::NotImplementedError>(
      [&] { per_sample_norms(row_losses(h - h.mean(0, true)), *model); });
  EXPECT_NE(text.find("the examples cannot be told apart in the gradient by the output of node"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("(AddmmBackward0)"), std::string::npos) << text;
}

TEST(PerSampleInput, ABatchWithoutGradientDecidesNothing) {
  // In the first batch all units are dead, and nothing tells which dimension is the example.
  nn::Linear model(3, 4);
  const auto losses_of = [&](const at::Tensor& x) {
    return (model->forward(x) - 10).relu().sum(2).sum(0);  // the examples in dimension 1
  };
  EXPECT_TRUE(per_sample_norms(losses_of(at::randn({4, 4, 3})), *model).eq(0).all().item<bool>());
  const auto losses = losses_of(100 * at::randn({4, 4, 3}));
  const auto norms = per_sample_norms(losses, *model);
  for (int64_t i = 0; i < 4; ++i) {
    model->zero_grad();
    losses[i].backward({}, /*retain_graph=*/true);
    const auto expected = model->weight.grad().square().sum() + model->bias.grad().square().sum();
    EXPECT_GT(expected.item<double>(), 0);
    EXPECT_NEAR(norms[i].item<double>(), std::sqrt(expected.item<double>()),
                1e-5 * norms[i].item<double>());
  }
}

TEST(PerSampleInput, TheGraphStaysForABackward) {
  nn::Linear model(3, 2);
  const auto x = at::randn({4, 3});
  const auto losses = row_losses(model->forward(x));
  per_sample_norms(losses, *model);
  per_sample_grads(losses, *model);
  losses.sum().backward();
  EXPECT_TRUE(model->weight.grad().defined());
}

TEST(PerSampleInput, NonFiniteExamplesTouchNoOthers) {
  nn::Sequential model(nn::Linear(3, 4), nn::Tanhshrink(), nn::Linear(4, 2));
  const auto x = at::randn({5, 3});
  auto bad = x.clone();
  bad[2][1] = std::numeric_limits<float>::infinity();
  // The bad one comes first: it must not look like a mixture in the search.
  const auto norms = per_sample_norms(row_losses(model->forward(bad)), *model);
  const auto expected = per_sample_norms(row_losses(model->forward(x)), *model);
  EXPECT_FALSE(std::isfinite(norms[2].item<double>()));
  for (const int64_t e : {0, 1, 3, 4}) {
    EXPECT_NEAR(norms[e].item<double>(), expected[e].item<double>(), 1e-6);
  }
}

TEST(PerSampleInput, ParametersWithHooksAreRefused) {
  nn::Linear model(3, 2);
  model->weight.register_hook([](const at::Tensor& g) { return g * 0; });
  const auto losses = row_losses(model->forward(at::randn({4, 3})));
  EXPECT_EQ(message_of<c10::NotImplementedError>([&] { per_sample_norms(losses, *model); }),
            "parameter 'weight' has a hook, which would not see single examples' gradients; remove "
            "it, and change the gradient after the clipped sum");
}

// ------------------------------------------------------------------ without a rule

struct Largest : nn::Module {
  at::Tensor p = register_parameter("p", at::randn({3}));
};

TEST(PerSampleWithoutRule, NonFiniteExamplesAreRefused) {
  Largest model;
  auto x = at::randn({4, 3});
  x[1][0] = std::numeric_limits<float>::quiet_NaN();
  const auto text = message_of(
      [&] { per_sample_norms(row_losses(at::maximum(x, model.p) * at::exp(x)), model); });
  EXPECT_NE(text.find("'p' is used by an op without a rule, where it cannot be told apart"),
            std::string::npos)
      << text;
}

// ------------------------------------------------------------------ where the example lies

/// Losses of a small network that counts the backwards through it.
struct Counted {
  nn::Linear first{3, 4}, second{4, 2};
  nn::Sequential model{first, second};
  std::shared_ptr<int64_t> backwards = std::make_shared<int64_t>(0);

  at::Tensor losses(const at::Tensor& x) {
    const auto h = first->forward(x);
    h.register_hook([count = backwards](const at::Tensor& g) {
      ++*count;
      return g;
    });
    return row_losses(second->forward(h.tanh()));
  }
};

TEST(PerSampleSearch, IsMadeOnceForBatchesOfAllSizes) {
  std::thread([] {  // whose memory is empty
    Counted net;
    int64_t expected = 0;
    for (const int64_t examples : {6, 5, 9, 4, 2, 1, 3, 64}) {
      const auto x = at::randn({examples, 3});
      const auto losses = net.losses(x);
      const auto norms = per_sample_norms(losses, *net.model);
      expected += examples == 6 ? 4 + 1 : 1;
      EXPECT_EQ(*net.backwards, expected) << examples;
      for (int64_t e = 0; e < examples; ++e) {
        const auto alone = per_sample_norms(net.losses(x.narrow(0, e, 1)), *net.model);
        EXPECT_NEAR(norms[e].item<double>(), alone.item<double>(), 1e-5);
        ++expected;
      }
    }
  })
      .join();
}

TEST(PerSampleSearch, IsMadeAnewWhereSizesDoNotCorrespond) {
  // The first batch has as many examples as steps: the second one's differ.
  nn::Linear model(3, 2);
  for (const auto& [examples, steps] :
       {std::pair<int64_t, int64_t>(4, 4), {4, 6}, {6, 4}, {2, 8}}) {
    for (const int64_t dim : {0, 1}) {
      const auto x = at::randn({examples, steps, 3});
      const auto y = model->forward(dim == 0 ? x : x.transpose(0, 1)).tanh();
      const auto norms = per_sample_norms(y.square().sum(2).sum(1 - dim), *model);
      for (int64_t e = 0; e < examples; ++e) {
        model->zero_grad();
        model->forward(x[e]).tanh().square().sum().backward();
        const double expected = std::hypot(model->weight.grad().norm().item<double>(),
                                           model->bias.grad().norm().item<double>());
        EXPECT_NEAR(norms[e].item<double>(), expected, 1e-4) << examples << ' ' << steps;
      }
    }
  }
}

// ------------------------------------------------------------------ beside others

TEST(PerSampleBeside, AutocastGivesTheGradientsOfItsForward) {
  nn::Sequential model(nn::Linear(8, 16), nn::Tanh(), nn::Linear(16, 4));
  const auto x = at::randn({6, 5, 8});
  const auto losses = [&](int64_t from, int64_t to) {
    const Autocast autocast(at::kCPU, at::kBFloat16);
    return model->forward(x.slice(0, from, to)).to(at::kFloat).square().sum({1, 2});
  };
  const auto norms = per_sample_norms(losses(0, 6), *model);
  for (const auto& one : per_sample_grads(losses(0, 6), *model)) {
    EXPECT_EQ(one.gradients.scalar_type(), at::kFloat);
  }
  for (int64_t e = 0; e < 6; ++e) {
    model->zero_grad();
    losses(e, e + 1).sum().backward();
    double squares = 0;
    for (const auto& p : model->parameters()) squares += p.grad().square().sum().item<double>();
    EXPECT_NEAR(norms[e].item<double>(), std::sqrt(squares), 0.02 * std::sqrt(squares));
  }
}

TEST(PerSampleBeside, CheckpointedBlocksGiveTheSameBits) {
  nn::Sequential block(nn::Linear(8, 16), nn::Tanh(), nn::Linear(16, 8));
  const auto x = at::randn({6, 8});
  const auto plain = per_sample_norms(row_losses(block->forward(x)), *block);
  const auto recomputed = per_sample_norms(row_losses(checkpoint(block, x)), *block);
  EXPECT_TRUE(at::equal(plain, recomputed));
}

}  // namespace
}  // namespace torchlore
