// AutoClip, ZClip and AGC against the values of tests/oracles/clippers.py, and what they do over long
// runs with anything in them.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/linear.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <numeric>
#include <sstream>
#include <string>
#include <vector>

#include "support/message.hpp"
#include "support/tolerance.hpp"
#include "test_paths.hpp"
#include "torchlore/core/parameters.hpp"
#include "torchlore/gradient/clip.hpp"

namespace torchlore {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

/// Streams do not read "inf" and "nan".
std::vector<double> numbers(const std::string& line) {
  std::istringstream in(line);
  std::vector<double> values;
  for (std::string text; in >> text;) values.push_back(std::stod(text));
  return values;
}

struct Scenario {
  std::string kind;
  std::string name;
  std::vector<double> options;
  std::vector<std::vector<double>> lines;
};

std::vector<Scenario> read_scenarios(const std::string& kind) {
  std::ifstream file(std::string(TORCHLORE_TEST_DATA) + "/clippers.txt");
  std::vector<Scenario> all;
  for (std::string line; std::getline(file, line);) {
    if (line.find_first_of("ghkl") == std::string::npos && !all.empty()) {
      all.back().lines.push_back(numbers(line));
      continue;
    }
    std::istringstream in(line);
    Scenario scenario;
    in >> scenario.kind >> scenario.name;
    std::string rest;
    std::getline(in, rest);
    scenario.options = numbers(rest);
    all.push_back(scenario);
  }
  std::erase_if(all, [&](const Scenario& s) { return s.kind != kind; });
  return all;
}

double limit_of(Clip& clipper, double norm) {
  return clipper.clipper()->max_norm(at::scalar_tensor(norm, at::kDouble));
}

void expect_limits(Clip clipper, const Scenario& scenario, double floor) {
  for (size_t i = 0; i < scenario.lines.size(); ++i) {
    const auto& line = scenario.lines[i];
    const double expected = std::max(line[1], floor);
    const double limit = limit_of(clipper, line[0]);
    if (limit == expected) continue;  // infinity
    ASSERT_NEAR(limit / expected, 1.0, 1e-12) << scenario.name << ", step " << i;
  }
}

TEST(AutoClip, IsThePercentileOfNumpy) {
  const auto scenarios = read_scenarios("autoclip");
  ASSERT_EQ(scenarios.size(), 11u);
  for (const auto& scenario : scenarios) {
    const auto history = static_cast<int64_t>(scenario.options[1]);
    expect_limits(clip::autoclip(scenario.options[0], {.history = history}), scenario, 1e-12);
  }
}

TEST(ZClip, IsThePapersFormula) {
  const auto scenarios = read_scenarios("zclip");
  ASSERT_EQ(scenarios.size(), 7u);
  for (const auto& scenario : scenarios) {
    expect_limits(clip::zclip({.alpha = scenario.options[0],
                               .z_threshold = scenario.options[1],
                               .warmup = static_cast<int64_t>(scenario.options[2])}),
                  scenario, 0);
  }
}

/// The two numbers of a saved history, or all of AutoClip's.
std::vector<double> history(Clip& clipper) {
  std::vector<double> values;
  for (const auto& [key, value] : clipper.state_dict()) {
    const auto flat = value.to(at::kDouble).reshape(-1);
    for (int64_t i = 0; i < flat.numel(); ++i) {
      const double number = flat[i].item<double>();
      values.push_back(std::isnan(number) ? -1 : number);
    }
  }
  return values;
}

std::vector<Clip> adaptive() { return {clip::autoclip(50, {.history = 8}), clip::zclip({})}; }

TEST(AdaptiveClip, NeverRemembersANonFiniteNorm) {
  for (auto& clipper : adaptive()) {
    for (const double bad : {kInf, -kInf, std::nan("")}) limit_of(clipper, bad);
    EXPECT_EQ(history(clipper), history(adaptive()[clipper.state_dict().contains("mean")]));
    for (int i = 0; i < 40; ++i) limit_of(clipper, 1.0 + 0.01 * (i % 3));
    const auto before = history(clipper);
    for (const double bad : {kInf, std::nan("")}) limit_of(clipper, bad);
    EXPECT_EQ(history(clipper), before);
  }
}

TEST(AdaptiveClip, SavesAndLoadsItsHistory) {
  for (auto& whole : adaptive()) {
    for (int i = 0; i < 33; ++i) limit_of(whole, 1.0 + 0.1 * (i % 5));
    auto resumed = adaptive()[whole.state_dict().contains("mean")];
    resumed.load_state_dict(whole.state_dict());
    for (int i = 0; i < 60; ++i) {
      const double norm = i % 9 == 0 ? 50.0 : 1.0 + 0.1 * (i % 7);
      ASSERT_EQ(limit_of(resumed, norm), limit_of(whole, norm)) << i;
    }
  }
}

TEST(AdaptiveClip, AStateHasOneLayout) {
  for (auto& clipper : adaptive()) {
    const auto fresh = clipper.state_dict();
    for (int i = 0; i < 5; ++i) limit_of(clipper, 1.0);
    for (const auto& [key, value] : clipper.state_dict()) {
      EXPECT_EQ(value.sizes(), fresh.at(key).sizes());
      EXPECT_EQ(value.scalar_type(), fresh.at(key).scalar_type());
    }
  }
}

TEST(AdaptiveClip, ClipsTheGradientsToItsLimit) {
  for (auto& clipper : adaptive()) {
    const auto p = at::zeros({4}).requires_grad_();
    for (int i = 0; i < 40; ++i) {
      p.mutable_grad() = at::full({4}, 0.5 + 0.01 * (i % 4));
      clipper.clip_({p});
    }
    p.mutable_grad() = at::full({4}, 500.0);
    EXPECT_EQ(clipper.clip_({p}).item<float>(), 1000.0f);
    const double left = p.grad().norm().item<double>();
    EXPECT_GT(left, 0.9);
    EXPECT_LT(left, 1.1);
  }
}

TEST(AdaptiveClip, RefusesANonFiniteNormIfAsked) {
  std::vector<Clip> clippers = {clip::autoclip(10, {.error_if_nonfinite = true}),
                                clip::zclip({.error_if_nonfinite = true})};
  for (auto& clipper : clippers) {
    EXPECT_EQ(testing::message_of([&] { limit_of(clipper, kInf); }),
              "the norm of the gradients is inf, so they cannot be clipped; look for what made it "
              "(a loss scale or a learning rate too high), or set error_if_nonfinite = false");
  }
}

TEST(ZClip, LimitsFromTheFirstStepOn) {
  auto clipper = clip::zclip({.warmup = 3, .max_norm = 2.0});
  EXPECT_EQ(limit_of(clipper, 100.0), 2.0);
  EXPECT_EQ(limit_of(clipper, 1.0), 2.0);
  EXPECT_EQ(limit_of(clipper, std::nan("")), 2.0);
}

TEST(ZClip, OfALongRunClipsSpikesAndLittleElse) {
  at::manual_seed(5);
  auto clipper = clip::zclip({});
  const auto noise = (at::randn({20'000}, at::kDouble) * 0.1).exp();
  int64_t clipped = 0, spikes = 0;
  for (int64_t i = 0; i < noise.numel(); ++i) {
    const bool spike = i > 100 && i % 500 == 0;
    const double norm = noise[i].item<double>() * (spike ? 100 : 1);
    const double limit = limit_of(clipper, norm);
    if (spike) {
      ASSERT_LT(limit, 1.5) << i;
      ++spikes;
    } else if (limit < norm) {
      ++clipped;
    }
  }
  EXPECT_EQ(spikes, 39);
  EXPECT_LT(clipped, noise.numel() / 25);  // the upper tail of a skewed distribution beyond 2.5 σ
}

at::Tensor shaped(const std::vector<double>& values, const std::vector<double>& shape) {
  const std::vector<int64_t> sizes(shape.begin(), shape.end());
  return at::tensor(values, at::kDouble).reshape(sizes);
}

/// AGC with one kind of storage; the result is contiguous again.
at::Tensor agc_left(const Scenario& s, at::ScalarType dtype, at::MemoryFormat format) {
  const std::vector<double> shape(s.options.begin() + 4, s.options.end());
  auto p = shaped(s.lines[0], shape).to(dtype).contiguous(format).requires_grad_();
  p.mutable_grad() = shaped(s.lines[1], shape).to(dtype).contiguous(format);
  auto clipper = clip::agc({.clipping = s.options[0], .eps = s.options[1]});
  const auto divisor = s.options[2];
  clipper.clip_({p}, {.divisor = divisor == 1 ? at::Tensor() : at::scalar_tensor(divisor)});
  return p.grad().contiguous();
}

TEST(Agc, IsThePapersFormula) {
  const auto scenarios = read_scenarios("agc");
  ASSERT_EQ(scenarios.size(), 6u);
  for (const auto& s : scenarios) {
    const std::vector<double> shape(s.options.begin() + 4, s.options.end());
    const auto expected = shaped(s.lines[2], shape);
    for (const auto dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
      EXPECT_TRUE(testing::close(agc_left(s, dtype, at::MemoryFormat::Contiguous), expected))
          << s.name << " " << dtype;
    }
    if (shape.size() != 4) continue;
    EXPECT_TRUE(testing::close(agc_left(s, at::kDouble, at::MemoryFormat::ChannelsLast), expected));
  }
}

/// Parameters of many shapes, with gradients of many sizes.
std::vector<at::Tensor> many() {
  at::manual_seed(9);
  std::vector<at::Tensor> all;
  const std::vector<std::vector<int64_t>> shapes = {
      {}, {1}, {5}, {3, 1}, {1, 7}, {700, 130}, {16, 8, 3, 3}, {2, 70'000}, {90'000}};
  for (const auto& shape : shapes) {
    auto p = at::randn(shape).requires_grad_();
    p.mutable_grad() = at::randn(shape) * 0.1;
    all.push_back(p);
  }
  return all;
}

/// The formula on whole tensors.
at::Tensor agc_reference(const at::Tensor& p, double clipping) {
  const auto flat = [&](const at::Tensor& t) {
    return t.detach().to(at::kDouble).reshape({p.dim() < 2 ? 1 : p.size(0), -1});
  };
  const auto limit = flat(p).norm(2, 1, true).clamp_min(1e-3) * clipping;
  const auto norm = flat(p.grad()).norm(2, 1, true);
  return (flat(p.grad()) * at::minimum(limit / norm, at::ones_like(norm))).reshape(p.sizes());
}

TEST(Agc, TakesAnyShapeAndNumberOfThreads) {
  const int before = at::get_num_threads();
  for (const int threads : {1, 2, 3}) {
    at::set_num_threads(threads);
    const auto parameters = many();
    std::vector<at::Tensor> expected;
    for (const auto& p : parameters) expected.push_back(agc_reference(p, 0.05));
    // A unit that two threads took would be divided twice.
    for (const auto& p : parameters) p.grad().mul_(4);
    clip::agc({.clipping = 0.05}).clip_(parameters, {.divisor = at::scalar_tensor(4.0)});
    for (size_t i = 0; i < parameters.size(); ++i) {
      EXPECT_TRUE(testing::close(parameters[i].grad(), expected[i])) << i;
    }
  }
  at::set_num_threads(before);
}

TEST(Agc, TakesStridesThatAreNoRuns) {
  for (const auto dtype : {at::kFloat, at::kHalf}) {
    auto p = at::randn({4, 6}).to(dtype).t().requires_grad_();
    const auto grad = (at::randn({4, 6}) * 0.1).to(dtype).t();
    p.mutable_grad() = grad.clone(at::MemoryFormat::Preserve);
    const auto expected = agc_reference(p, 0.05);
    clip::agc({.clipping = 0.05}).clip_({p});
    EXPECT_TRUE(testing::close(p.grad(), expected));
  }
}

TEST(Agc, TakesTheRowsOfASparseGradient) {
  auto p = at::randn({5, 3}).requires_grad_();
  const auto rows = at::tensor({3, 1, 3}, at::kLong).unsqueeze(0);
  const auto values = at::randn({3, 3});
  p.mutable_grad() = at::sparse_coo_tensor(rows, values, {5, 3}).to_dense();
  const auto expected = agc_reference(p, 0.05);
  p.mutable_grad() = at::sparse_coo_tensor(rows, values, {5, 3});
  clip::agc({.clipping = 0.05}).clip_({p});
  const auto left = p.grad().to_dense();
  for (const int64_t row : {1, 3})
    EXPECT_TRUE(testing::close(left[row], expected[row].to(at::kFloat)));
  p.mutable_grad() = at::eye(5).slice(1, 0, 3).to_sparse();
  EXPECT_EQ(
      testing::message_of<c10::NotImplementedError>([&] { clip::agc({}).clip_({p}); }),
      "clip::agc needs the rows of a gradient, but a sparse one has 2 sparse dimensions; make "
      "it dense, or put its parameter in AgcOptions::skip");
}

TEST(Agc, KeepsInfAndNanWhereTheyAre) {
  auto p = at::ones({3, 2}).requires_grad_();
  p.mutable_grad() = at::tensor({1.0f, 1.0f, 1.0f, std::nanf(""), 1.0f, 1.0f}).reshape({3, 2});
  clip::agc({}).clip_({p});
  EXPECT_NEAR(p.grad()[0].norm().item<float>(), 0.01 * std::sqrt(2.0), 1e-6);
  EXPECT_NEAR(p.grad()[2].norm().item<float>(), 0.01 * std::sqrt(2.0), 1e-6);
  EXPECT_TRUE(p.grad()[1].isnan().any().item<bool>());
}

TEST(Agc, SkipsWhatItIsTold) {
  struct Net : torch::nn::Module {
    torch::nn::Linear body = register_module("body", torch::nn::Linear(3, 3));
    torch::nn::Linear head = register_module("head", torch::nn::Linear(3, 2));
  } net;
  for (const auto& p : net.parameters()) p.mutable_grad() = at::ones_like(p);
  clip::agc({.skip = parameters_named(net, {"head"})})
      .clip_(net, {.divisor = at::scalar_tensor(2.0)});
  EXPECT_EQ(net.head->weight.grad()[0][0].item<float>(), 0.5f);
  EXPECT_EQ(net.head->bias.grad()[0].item<float>(), 0.5f);
  EXPECT_LT(net.body->weight.grad().abs().max().item<float>(), 0.05f);
}

TEST(AdaptiveClip, NamesBadArguments) {
  const auto message = [](const auto& f) { return testing::message_of<c10::ValueError>(f); };
  EXPECT_EQ(message([] { clip::autoclip(101); }),
            "clip::autoclip(percentile) must lie in [0, 100], but is 101");
  EXPECT_EQ(message([] { clip::autoclip(-1); }),
            "clip::autoclip(percentile) must lie in [0, 100], but is -1");
  EXPECT_EQ(message([] { clip::autoclip(std::nan("")); }),
            "clip::autoclip(percentile) must lie in [0, 100], but is nan");
  EXPECT_EQ(message([] { clip::autoclip(10, {.history = 0}); }),
            "history must be 1 or more, but is 0");
  EXPECT_EQ(message([] { clip::autoclip(10, {.norm_type = 0}); }),
            "norm_type must be above 0 (2, 1, infinity, …), but is 0");
  for (const double alpha : {0.0, 1.0, -0.5, std::nan("")}) {
    EXPECT_EQ(message([&] { clip::zclip({.alpha = alpha}); }),
              c10::str("alpha must lie between 0 and 1, both excluded, but is ", alpha));
  }
  EXPECT_EQ(message([] { clip::zclip({.z_threshold = 0}); }),
            "z_threshold must be a finite number above 0, but is 0");
  EXPECT_EQ(message([] { clip::zclip({.warmup = 1}); }),
            "warmup must be 2 or more, but is 1; one norm has no variance");
  EXPECT_EQ(message([] { clip::zclip({.max_norm = 0}); }),
            "max_norm must be above 0, but is 0; use infinity for no limit on top");
  EXPECT_EQ(message([] { clip::agc({.clipping = 0}); }),
            "clipping must be a finite number above 0, but is 0");
  EXPECT_EQ(message([] { clip::agc({.eps = kInf}); }),
            "eps must be a finite number above 0, but is inf");
  EXPECT_EQ(message([] { clip::agc({.skip = {at::Tensor()}}); }),
            "AgcOptions::skip[0] is undefined");
}

TEST(AdaptiveClip, RefusesAStateThatIsNotOne) {
  const auto message = [](Clip clipper, const StateDict& state) {
    const auto before = history(clipper);
    const auto text = testing::message_of<c10::ValueError>([&] { clipper.load_state_dict(state); });
    EXPECT_EQ(history(clipper), before);
    return text;
  };
  EXPECT_EQ(message(clip::autoclip(), {}), "the saved state of clip::autoclip has no 'history'");
  EXPECT_EQ(message(clip::autoclip(), {{"history", at::zeros({2, 2})}}),
            "the saved norms of clip::autoclip must be 1-d, but have shape [2, 2]");
  EXPECT_EQ(message(clip::autoclip(), {{"history", at::tensor({1.0, -2.0})}}),
            "the saved norms of clip::autoclip must be finite and not below 0, but hold -2");
  auto state = clip::zclip().state_dict();
  state["mean"] = state_value(kInf);
  EXPECT_EQ(message(clip::zclip(), state), "mean must be a finite number, 0 or above, but is inf");
  state.erase("mean");
  EXPECT_EQ(message(clip::zclip(), state),
            "the saved state has no 'mean'; it has: steps, variance");
}

}  // namespace
}  // namespace torchlore
