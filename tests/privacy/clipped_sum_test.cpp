#include "torchlore/privacy/clipped_sum.hpp"

#include <gtest/gtest.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include <cmath>
#include <limits>
#include <sstream>

#include "privacy/example_loop.hpp"
#include "support/message.hpp"
#include "support/tolerance.hpp"

namespace torchlore {
namespace {

namespace nn = torch::nn;
using testing::close;
using testing::loop_gradients;
using testing::loop_norms;
using testing::message_of;
using testing::PrivateCase;

at::Tensor row_losses(const at::Tensor& output) { return output.square().sum(1); }

PrivateCase network(const at::Tensor& x) {
  at::manual_seed(5);
  nn::Sequential model(nn::Linear(3, 8), nn::Tanh(), nn::LayerNorm(nn::LayerNormOptions({8})),
                       nn::Linear(8, 2));
  model->to(at::kDouble);
  return {"network", model.ptr(), x.size(0), [=](int64_t from, int64_t to) mutable {
            return row_losses(model->forward(x.narrow(0, from, to - from)));
          }};
}

at::Tensor inputs(int64_t examples = 6) {
  at::manual_seed(9);
  return at::randn({examples, 3}, at::kDouble);
}

/// Σᵢ cᵢ·gᵢ in plain arithmetic.
at::Tensor weighed(const at::Tensor& gradients, const at::Tensor& factors) {
  auto sum = at::zeros_like(gradients[0]);
  for (int64_t e = 0; e < gradients.size(0); ++e) sum += gradients[e] * factors[e];
  return sum;
}

TEST(ClippedSum, PerLayerClipsEachModuleAlone) {
  const auto c = network(inputs());
  const auto loop = loop_gradients(c);
  const double max_norm = 2.0;
  const auto done = add_clipped_sum(c.losses(0, 6), *c.model, ExampleClipping::per_layer(max_norm));
  EXPECT_EQ(done.norms.sizes(), at::IntArrayRef({6, 3}));
  EXPECT_EQ(done.sensitivity, max_norm);
  int64_t column = 0;
  for (const std::string module : {"0.", "2.", "3."}) {
    const auto norms =
        loop_norms(loop, [&](const std::string& name) { return name.starts_with(module); });
    EXPECT_TRUE(close(done.norms.select(1, column++), norms));
    const auto factors = (max_norm / std::sqrt(3.0) / norms).clamp_max(1);
    for (const auto& item : c.model->named_parameters()) {
      if (!item.key().starts_with(module)) continue;
      EXPECT_TRUE(close(item.value().grad(), weighed(loop.at(item.key()), factors))) << item.key();
    }
  }
}

TEST(ClippedSum, PerGroupClipsEachGroupToItsOwnNorm) {
  const auto c = network(inputs());
  const auto loop = loop_gradients(c);
  const auto clipping = ExampleClipping::per_group(
      {{.names = {"0", "3.bias"}, .max_norm = 0.3}, {.names = {"2", "3.weight"}, .max_norm = 0.4}});
  EXPECT_DOUBLE_EQ(clipping.sensitivity(), 0.5);
  const auto done = add_clipped_sum(c.losses(0, 6), *c.model, clipping);
  const auto is_first = [](const std::string& name) {
    return name.starts_with("0.") || name == "3.bias";
  };
  const auto first = loop_norms(loop, is_first);
  EXPECT_TRUE(close(done.norms.select(1, 0), first));
  const auto second = loop_norms(loop, [&](const auto& name) { return !is_first(name); });
  for (const auto& item : c.model->named_parameters()) {
    const auto factors = is_first(item.key()) ? (0.3 / first).clamp_max(1)  //
                                              : (0.4 / second).clamp_max(1);
    EXPECT_TRUE(close(item.value().grad(), weighed(loop.at(item.key()), factors))) << item.key();
  }
}

TEST(ClippedSum, AutomaticNormalizes) {
  const auto c = network(inputs());
  const auto loop = loop_gradients(c);
  const auto done =
      add_clipped_sum(c.losses(0, 6), *c.model, ExampleClipping::automatic(0.7, 0.05));
  const auto factors = 0.7 / (loop_norms(loop) + 0.05);
  EXPECT_TRUE(close(done.factors.squeeze(1), factors));
  EXPECT_EQ(done.clipped, 0);
  for (const auto& item : c.model->named_parameters()) {
    EXPECT_TRUE(close(item.value().grad(), weighed(loop.at(item.key()), factors))) << item.key();
  }
}

TEST(ClippedSum, CountsAndAdds) {
  const auto c = network(inputs());
  const auto norms = loop_norms(loop_gradients(c));
  const double max_norm = norms.median().item<double>();  // the third of six
  const auto flat = ExampleClipping::flat(max_norm * 1.0000001);
  const auto once = add_clipped_sum(c.losses(0, 6), *c.model, flat);
  EXPECT_EQ(once.examples, 6);
  EXPECT_EQ(once.clipped, 3);
  EXPECT_EQ(once.dropped, 0);
  std::vector<at::Tensor> first;
  for (const auto& p : c.model->parameters()) first.push_back(p.grad().clone());
  add_clipped_sum(c.losses(0, 6), *c.model, flat);
  for (size_t i = 0; i < first.size(); ++i) {
    EXPECT_TRUE(close(c.model->parameters()[i].grad(), 2 * first[i]));
  }
}

TEST(ClippedSum, DropsNonFiniteExamplesWholeInEveryMode) {
  const auto clean = inputs();
  for (const double bad : {std::numeric_limits<double>::infinity(), std::nan("")}) {
    for (const auto mode : {PerSampleMode::automatic, PerSampleMode::instantiated,
                            PerSampleMode::ghost, PerSampleMode::recomputed}) {
      auto x = clean.clone();
      x[1][2] = bad;
      x[4][0] = bad;
      const auto c = network(x);
      const auto done =
          add_clipped_sum(c.losses(0, 6), *c.model, ExampleClipping::flat(0.5), {.mode = mode});
      EXPECT_EQ(done.dropped, 2);
      EXPECT_EQ(done.factors[1].item<double>(), 0);
      const auto rest =
          network(at::cat({clean.slice(0, 0, 1), clean.slice(0, 2, 4), clean.slice(0, 5, 6)}));
      add_clipped_sum(rest.losses(0, 4), *rest.model, ExampleClipping::flat(0.5));
      for (size_t i = 0; i < rest.model->parameters().size(); ++i) {
        EXPECT_TRUE(close(c.model->parameters()[i].grad(), rest.model->parameters()[i].grad()));
      }
    }
  }
}

TEST(ClippedSum, AGraphServesOnce) {
  const auto c = network(inputs());
  const auto flat = ExampleClipping::flat(1.0);
  const auto losses = c.losses(0, 6);
  add_clipped_sum(losses, *c.model, flat);
  const std::string text =
      "the graph behind these losses was used up by add_clipped_sum; using its gradients twice "
      "would "
      "count each example twice: run the forward again";
  EXPECT_EQ(message_of([&] { add_clipped_sum(losses, *c.model, flat); }), text);
  EXPECT_EQ(message_of([&] { add_clipped_sum(losses * 2, *c.model, flat); }), text);
  EXPECT_EQ(message_of([&] { per_sample_norms(losses, *c.model); }), text);
  EXPECT_EQ(message_of([&] { losses.sum().backward(); }), text);
}

TEST(ClippedSum, OpsThatSaveNothingServeOnceToo) {
  struct Shift : nn::Module {
    Shift() : p(register_parameter("p", at::randn({3}))) {}
    at::Tensor p;
  } model;
  const auto losses = (at::randn({4, 3}) + model.p).sum(1);
  add_clipped_sum(losses, model, ExampleClipping::flat(1.0));
  EXPECT_NE(message_of([&] { losses.sum().backward(); }).find("used up"), std::string::npos);
}

TEST(ClippedSum, AnEmptyBatchAddsNothing) {
  const auto c = network(inputs());
  const auto done = add_clipped_sum(c.losses(2, 2), *c.model, ExampleClipping::flat(1.0));
  EXPECT_EQ(done.examples, 0);
  EXPECT_EQ(done.norms.sizes(), at::IntArrayRef({0, 1}));
  for (const auto& p : c.model->parameters()) EXPECT_FALSE(p.grad().defined());
}

TEST(ExampleClippingValues, AreChecked) {
  const double infinity = std::numeric_limits<double>::infinity();
  EXPECT_EQ(
      message_of<c10::ValueError>([] { ExampleClipping::flat(0); }),
      "max_norm must be finite and above 0, but is 0; without a bound on each example there is "
      "no privacy");
  for (const double bad : {0.0, -1.0, infinity, std::nan("")}) {
    EXPECT_THROW(ExampleClipping::flat(bad), c10::ValueError);
    EXPECT_THROW(ExampleClipping::per_layer(bad), c10::ValueError);
    EXPECT_THROW(ExampleClipping::automatic(bad), c10::ValueError);
    EXPECT_THROW(ExampleClipping::automatic(1.0, bad), c10::ValueError);
    EXPECT_THROW(ExampleClipping::per_group({{.names = {"a"}, .max_norm = bad}}), c10::ValueError);
  }
  EXPECT_THROW(ExampleClipping::per_group({}), c10::ValueError);
  std::ostringstream text;
  text << ExampleClipping::flat(1) << ' ' << ExampleClipping::automatic(2, 0.01);
  EXPECT_EQ(text.str(), "flat(1) automatic(2, 0.01)");
}

TEST(ExampleClippingValues, GroupsMustFitTheModel) {
  const auto c = network(inputs());
  const auto text = [&](std::vector<ClipGroup> groups) {
    return message_of<c10::ValueError>([&] {
      add_clipped_sum(c.losses(0, 6), *c.model, ExampleClipping::per_group(std::move(groups)));
    });
  };
  EXPECT_EQ(text({{.names = {"0", "2"}}}),
            "parameter '3.weight' is in no group; every trainable parameter must be in one, or be "
            "frozen");
  EXPECT_EQ(text({{.names = {"0", "2", "3"}}, {.names = {"0.bias"}}}),
            "parameter '0.bias' is in two groups; each must be in one");
  EXPECT_EQ(text({{.names = {"0", "2", "3", "head"}}}),
            "no trainable parameter goes by the name 'head'");
  for (const auto& p : c.model->parameters()) EXPECT_FALSE(p.grad().defined());
}

}  // namespace
}  // namespace torchlore
