#include "torchlore/optimizer/weight_average.hpp"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>

#include <cmath>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "support/faulty_allocator.hpp"
#include "support/message.hpp"
#include "support/temporary_folder.hpp"
#include "support/tolerance.hpp"
#include "test_paths.hpp"
#include "torchlore/core/module_state.hpp"
#include "torchlore/core/run_state.hpp"

namespace torchlore {
namespace {

using torch::nn::BatchNorm1d;
using torch::nn::Linear;
using torch::nn::Sequential;

/// The model of tests/oracles/weight_averages.py, and its weights at a step.
Sequential make_model() {
  Sequential model(Linear(3, 2), BatchNorm1d(2));
  model->to(at::kDouble);
  return model;
}

void set_weights(torch::nn::Module& model, int step) {
  const at::NoGradGuard no_grad;
  const auto fill = [](const at::Tensor& tensor, const auto& value) {
    const auto flat = tensor.view(-1);
    for (int i = 0; i < tensor.numel(); ++i) flat[i].fill_(value(i));
  };
  int k = 0;
  for (const auto& p : model.parameters()) {
    fill(p, [&](int i) { return std::cos(0.3 * step + 1.1 * i + 0.5 * k); });
    ++k;
  }
  k = 0;
  for (const auto& b : model.buffers()) {
    const bool counter = b.scalar_type() == at::kLong;
    fill(b, [&](int i) { return counter ? step : 1 + 0.5 * std::sin(0.2 * step + 0.7 * i + k); });
    ++k;
  }
}

using Golden = std::map<int, std::vector<double>>;

Golden golden(const std::string& name) {
  std::ifstream file(std::string(TORCHLORE_TEST_DATA) + "/weight_averages.txt");
  Golden found;
  bool inside = false;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    if (line.rfind("case ", 0) == 0) {
      inside = line.substr(5) == name;
    } else if (inside) {
      int step = 0;
      words >> step;
      for (double value = 0; words >> value;) found[step].push_back(value);
    }
  }
  return found;
}

struct Case {
  std::string name;
  WeightAverage (*make)(const torch::nn::Module& model);
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

std::vector<Case> cases() {
  using M = const torch::nn::Module&;
  constexpr auto none = EmaWarmup::none;
  return {
      {"ema", [](M m) { return WeightAverage::ema(m, {.decay = 0.9, .warmup = none}); }},
      {"ema_multi", [](M m) { return WeightAverage::ema(m, {.decay = 0.99, .warmup = none}); }},
      {"ema_buffers",
       [](M m) {
         return WeightAverage::ema(
             m, {.decay = 0.9, .warmup = none, .buffers = AverageBuffers::average});
       }},
      {"ema_ratio", [](M m) { return WeightAverage::ema(m, {.decay = 0.8}); }},
      {"ema_power",
       [](M m) {
         return WeightAverage::ema(
             m, {.decay = 0.95, .warmup = EmaWarmup::power, .inv_gamma = 2, .power = 0.75});
       }},
      {"ema_start_period",
       [](M m) {
         return WeightAverage::ema(m, {.decay = 0.7, .warmup = none, .start = 3, .period = 4});
       }},
      {"swa", [](M m) { return WeightAverage::swa(m); }},
      {"swa_default", [](M m) { return WeightAverage::swa(m); }},
      {"swa_start_period", [](M m) { return WeightAverage::swa(m, {.start = 5, .period = 5}); }},
      {"swa_buffers",
       [](M m) { return WeightAverage::swa(m, {.buffers = AverageBuffers::average}); }},
  };
}

class PyTorch : public ::testing::TestWithParam<Case> {};

TEST_P(PyTorch, MakesTheSameAverages) {
  const auto expected = golden(GetParam().name);
  ASSERT_GE(expected.size(), 3U);
  auto model = make_model();
  auto average = GetParam().make(*model);
  int shown = 0;
  for (int step = 1; step <= 30; ++step) {
    set_weights(*model, step);
    average.update();
    const auto found = expected.find(step);
    if (found == expected.end()) continue;
    ++shown;
    const auto averages = average.averages();
    size_t at = 0;
    const auto compare = [&](const std::string& name) {
      const auto flat = averages.at(name).to(at::kDouble).view(-1);
      for (int64_t i = 0; i < flat.numel(); ++i, ++at) {
        // PyTorch averages the counter of batches too, and cuts it to an integer; here it is copied.
        if (name == "1.num_batches_tracked") continue;
        EXPECT_NEAR(flat[i].item<double>(), found->second.at(at), 1e-14)
            << name << "[" << i << "] at step " << step;
      }
    };
    for (const auto& item : model->named_parameters()) compare(item.key());
    for (const auto& item : model->named_buffers()) compare(item.key());
    EXPECT_EQ(at, found->second.size());
  }
  EXPECT_EQ(shown, static_cast<int>(expected.size()));
  EXPECT_EQ(average.steps(), 30);
}

INSTANTIATE_TEST_SUITE_P(Averages, PyTorch, ::testing::ValuesIn(cases()),
                         [](const auto& row) { return row.param.name; });

/// Tensors of odd sizes and layouts as parameters, so that every path is met.
struct Odd : torch::nn::Module {
  explicit Odd(at::ScalarType dtype) {
    at::manual_seed(7);
    const auto add = [&](const std::string& name, const at::Tensor& t) {
      register_parameter(name, t.to(dtype));
    };
    add("scalar", at::randn({}));
    add("empty", at::randn({0, 3}));
    add("small", at::randn({17}));
    add("transposed", at::randn({5, 7}).t());
    add("channels_last", at::randn({2, 3, 4, 5}).contiguous(at::MemoryFormat::ChannelsLast));
    register_parameter("gaps", at::randn({6, 8}).to(dtype).slice(1, 0, 3));
    add("large", at::randn({70'001}));
    register_buffer("statistic", at::randn({9}).to(dtype));
    register_buffer("counter", at::zeros({}, at::kLong));
  }
  void change() {
    const at::NoGradGuard no_grad;
    for (auto& p : parameters()) p.add_(at::randn(p.sizes()).to(p.scalar_type()), 0.1);
    buffers()[0].mul_(1.01);
    buffers()[1].add_(1);
  }
};

StateDict copy_of(const torch::nn::Module& model) {
  StateDict copies;
  for (const auto& [name, tensor] : module_state_dict(model)) copies[name] = tensor.clone();
  return copies;
}

class Dtypes : public ::testing::TestWithParam<at::ScalarType> {};

TEST_P(Dtypes, AveragesInFloat32OrWider) {
  const bool wide = GetParam() == at::kDouble;
  for (const auto rule : {AverageBuffers::copy, AverageBuffers::average}) {
    Odd model(GetParam());
    auto average =
        WeightAverage::ema(model, {.decay = 0.999, .warmup = EmaWarmup::none, .buffers = rule});
    StateDict expected;
    for (int step = 0; step < 20; ++step) {
      model.change();
      average.update();
      for (const auto& [name, tensor] : module_state_dict(model)) {
        const auto now = tensor.to(at::kDouble);
        auto& e = expected[name];
        const bool copied =
            name == "counter" || (name == "statistic" && rule == AverageBuffers::copy);
        e = step == 0 || copied ? now.clone() : e * 0.999 + now * (1 - 0.999);
      }
    }
    for (const auto& [name, tensor] : average.averages()) {
      const auto dtype = name == "counter" ? at::kLong : wide ? at::kDouble : at::kFloat;
      EXPECT_EQ(tensor.scalar_type(), dtype) << name;
      EXPECT_TRUE(
          at::allclose(tensor.to(at::kDouble), expected.at(name), 1e-5, wide ? 1e-14 : 1e-6))
          << name;
    }
    EXPECT_EQ(average.averages().at("counter").item<int64_t>(), 20);
  }
}

TEST_P(Dtypes, SwapsInAndOut) {
  for (const auto rule : {AverageBuffers::copy, AverageBuffers::average, AverageBuffers::leave}) {
    Odd model(GetParam());
    auto average = WeightAverage::ema(model, {.decay = 0.5, .buffers = rule});
    for (int step = 0; step < 5; ++step) {
      model.change();
      average.update();
    }
    model.change();
    const auto own = copy_of(model);
    const auto addresses = model.parameters();
    StateDict averages;
    for (const auto& [name, t] : average.averages()) averages[name] = t.clone();
    for (int round = 0; round < 2; ++round) {
      const auto scope = average.swap();
      EXPECT_TRUE(average.swapped());
      for (const auto& [name, tensor] : module_state_dict(model)) {
        const auto found = averages.find(name);
        const auto expected = found == averages.end() ? own.at(name) : found->second;
        EXPECT_TRUE(testing::same(tensor, expected.to(tensor.scalar_type()))) << name;
      }
      for (size_t i = 0; i < addresses.size(); ++i) {
        EXPECT_TRUE(model.parameters()[i].is_same(addresses[i]));
      }
    }
    EXPECT_FALSE(average.swapped());
    for (const auto& [name, tensor] : module_state_dict(model)) {
      EXPECT_TRUE(testing::same(tensor, own.at(name))) << name;
    }
    for (const auto& [name, tensor] : average.averages()) {
      EXPECT_TRUE(testing::same(tensor, averages.at(name))) << name;
    }
    EXPECT_EQ(averages.count("statistic"), rule == AverageBuffers::leave ? 0U : 1U);
  }
}

INSTANTIATE_TEST_SUITE_P(All, Dtypes,
                         ::testing::Values(at::kFloat, at::kDouble, at::kHalf, at::kBFloat16));

TEST(WeightAverage, TakesLargeTensorsThatNoKernelWalks) {
  // Transposed views with gaps, in float16: more than are widened at once.
  struct Large : torch::nn::Module {
    Large() {
      for (const char* name : {"a", "b", "c"}) {
        register_parameter(name, at::ones({3000, 3001}, at::kHalf).slice(1, 0, 3000));
      }
    }
  } model;
  auto average = WeightAverage::swa(model);
  average.update();
  {
    const at::NoGradGuard no_grad;
    for (auto& p : model.parameters()) p.fill_(3);
  }
  average.update();
  for (const auto& [name, tensor] : average.averages()) {
    EXPECT_EQ(tensor.min().item<float>(), 2) << name;
    EXPECT_EQ(tensor.max().item<float>(), 2) << name;
  }
}

TEST(WeightAverage, DoesNotDependOnThreads) {
  std::vector<at::Tensor> results;
  for (const int threads : {1, 4}) {
    at::set_num_threads(threads);
    Odd model(at::kFloat);
    auto average = WeightAverage::swa(model);
    for (int step = 0; step < 4; ++step) {
      model.change();
      average.update();
    }
    results.push_back(average.averages().at("large").clone());
  }
  EXPECT_TRUE(testing::same(results[0], results[1]));
}

TEST(WeightAverage, AnExceptionInTheScopeGivesTheWeightsBack) {
  Odd model(at::kHalf);
  auto average = WeightAverage::ema(model, {.decay = 0.5});
  average.update();
  model.change();
  const auto own = copy_of(model);
  EXPECT_THROW(
      {
        const auto scope = average.swap();
        throw std::runtime_error("evaluation failed");
      },
      std::runtime_error);
  for (const auto& [name, tensor] : module_state_dict(model)) {
    EXPECT_TRUE(testing::same(tensor, own.at(name))) << name;
  }
}

TEST(WeightAverage, TrainingGoesOnAfterAScopeAsWithout) {
  const auto train = [](bool evaluate) {
    at::manual_seed(2);
    Linear model(4, 3);
    const auto x = at::randn({16, 4});
    torch::optim::AdamW optimizer(model->parameters(), torch::optim::AdamWOptions(0.05));
    auto average = WeightAverage::ema(*model);
    for (int step = 0; step < 12; ++step) {
      optimizer.zero_grad();
      model(x).square().mean().backward();
      optimizer.step();
      average.update();
      if (evaluate) const auto scope = average.swap();
    }
    EXPECT_EQ(optimizer.state().size(), 2U);
    return model->weight.detach().clone();
  };
  EXPECT_TRUE(testing::same(train(true), train(false)));
}

TEST(WeightAverage, TiedWeightsStayTied) {
  // Two modules share a tensor, a third one a view of its memory.
  struct Tied : torch::nn::Module {
    Tied() {
      weight = register_parameter("a", at::randn({4, 4}));
      register_parameter("b", weight);
      view = weight.detach().t();
    }
    at::Tensor weight, view;
  } model;
  auto average = WeightAverage::swa(model);
  EXPECT_EQ(average.averages().size(), 1U);
  average.update();
  {
    const at::NoGradGuard no_grad;
    model.weight.zero_();
  }
  {
    const auto scope = average.swap();
    EXPECT_TRUE(testing::same(model.view, model.weight.detach().t()));
    EXPECT_GT(model.view.abs().max().item<double>(), 0);
  }
  EXPECT_EQ(model.view.abs().max().item<double>(), 0);
}

TEST(WeightAverage, AGraphAcrossAScopeIsRefusedByAutograd) {
  Linear model(3, 3);
  auto average = WeightAverage::swa(*model);
  average.update();
  const auto x = at::randn({2, 3}).requires_grad_();
  const auto y = model(x).sum();  // needs the weight for the gradient of x
  { const auto scope = average.swap(); }
  EXPECT_THROW(y.backward(), c10::Error);
}

class Recalibrated : public ::testing::TestWithParam<at::ScalarType> {};

TEST_P(Recalibrated, StatisticsAreKeptUntilTheNextUpdate) {
  auto model = make_model();
  model->to(GetParam());
  auto average = WeightAverage::swa(*model);
  set_weights(*model, 1);
  average.update();
  const auto statistic = [&] { return model->named_buffers()["1.running_mean"]; };
  const auto own = statistic().clone();
  {
    const auto scope = average.swap();
    statistic().fill_(42);
  }
  EXPECT_TRUE(testing::same(statistic(), own));
  {
    const auto scope = average.swap();
    EXPECT_EQ(statistic()[0].item<double>(), 42);
  }
  average.update();
  const auto scope = average.swap();
  EXPECT_TRUE(testing::same(statistic(), own));
}

INSTANTIATE_TEST_SUITE_P(All, Recalibrated, ::testing::Values(at::kFloat, at::kHalf));

TEST(WeightAverage, CopiesToTheModelForGood) {
  Odd model(at::kBFloat16);
  auto average = WeightAverage::swa(model);
  for (int i = 0; i < 3; ++i) {
    model.change();
    average.update();
  }
  average.copy_to_model();
  for (const auto& [name, tensor] : module_state_dict(model)) {
    EXPECT_TRUE(testing::same(tensor, average.averages().at(name).to(tensor.scalar_type())));
  }
}

TEST(WeightAverage, FollowsAModelThatGetsNewMemory) {
  Linear model(3, 3);
  auto average = WeightAverage::swa(*model);
  model->to(at::kDouble);  // LibTorch gives the same tensors other memory
  {
    const at::NoGradGuard no_grad;
    model->weight.fill_(2);
  }
  average.update();
  EXPECT_EQ(average.averages().at("weight").mean().item<double>(), 2);
}

TEST(WeightAverage, GoesOnWhereItStood) {
  const testing::TemporaryFolder folder;
  Odd whole(at::kHalf);
  auto average = WeightAverage::ema(whole, {.start = 2, .period = 2});
  {
    RunState run(folder / "run");
    run.add("model", whole).add("average", average);
    for (int step = 0; step < 7; ++step) {
      whole.change();
      average.update();
    }
    run.save();
  }
  Odd resumed(at::kHalf);
  auto again = WeightAverage::ema(resumed, {.start = 2, .period = 2});
  RunState run(folder / "run");
  run.add("model", resumed).add("average", again);
  ASSERT_TRUE(run.resume());
  EXPECT_EQ(again.steps(), 7);
  EXPECT_EQ(again.updates(), 3);
  const auto next = at::randn({17}).to(at::kHalf);
  for (auto* side : {&whole, &resumed}) {
    const at::NoGradGuard no_grad;
    side->named_parameters()["small"].copy_(next);
  }
  EXPECT_TRUE(average.update());
  EXPECT_TRUE(again.update());
  for (const auto& [name, tensor] : average.averages()) {
    EXPECT_TRUE(testing::same(again.averages().at(name), tensor)) << name;
  }
}

TEST(WeightAverage, CopiesShareOneAverage) {
  Linear model(2, 2);
  auto first = WeightAverage::swa(*model);
  auto second = first;
  first.update();
  EXPECT_EQ(second.updates(), 1);
}

TEST(WeightAverage, MemoryThatRunsOutInSwapChangesNothing) {
  Odd model(at::kHalf);
  auto average = WeightAverage::ema(model);
  average.update();
  model.change();
  const auto own = copy_of(model);
  auto& allocator = testing::FaultyAllocator::install();
  int64_t failures = 0;
  for (bool through = false; !through; ++failures) {
    allocator.fail_at(failures);
    try {
      const auto scope = average.swap();
      through = true;
      allocator.never_fail();
    } catch (const c10::OutOfMemoryError&) {
      allocator.never_fail();
      EXPECT_FALSE(average.swapped());
    }
    for (const auto& [name, tensor] : module_state_dict(model)) {
      ASSERT_TRUE(testing::same(tensor, own.at(name))) << name << " at allocation " << failures;
    }
  }
  EXPECT_GT(failures, 5);
}

TEST(WeightAverage, NamesMisuse) {
  Linear model(2, 3);
  const auto refusal = [](const auto& f) { return testing::message_of<c10::ValueError>(f); };
  EXPECT_EQ(refusal([&] { WeightAverage::ema(*model, {.decay = 1.5}); }),
            "WeightAverage::ema: decay must lie in [0, 1], but is 1.5");
  EXPECT_EQ(refusal([&] { WeightAverage::ema(*model, {.power = 0}); }),
            "WeightAverage::ema: power must be a finite number above 0, but is 0");
  EXPECT_EQ(refusal([&] { WeightAverage::swa(*model, {.start = -1}); }),
            "WeightAverage: start must be 0 or more steps, but is -1");
  EXPECT_EQ(refusal([&] { WeightAverage::swa(*model, {.period = 0}); }),
            "WeightAverage: period must be 1 or more, but is 0");
  EXPECT_EQ(refusal([] { WeightAverage::swa(torch::nn::Module()); }),
            "WeightAverage got a model without parameters; pass the module that holds them");
  auto average = WeightAverage::swa(*model);
  {
    const auto scope = average.swap();
    const auto in_scope = [&](const auto& f) { return testing::message_of<c10::Error>(f); };
    const std::string rest =
        " a WeightAverage while its averages are in the model; end the scope that swap() gave "
        "first";
    EXPECT_EQ(in_scope([&] { average.update(); }), "cannot update" + rest);
    EXPECT_EQ(in_scope([&] { const auto second = average.swap(); }), "cannot swap in" + rest);
    EXPECT_EQ(in_scope([&] { average.averages(); }), "cannot read" + rest);
    EXPECT_EQ(in_scope([&] { average.state_dict(); }), "cannot save" + rest);
    EXPECT_EQ(in_scope([&] { average.load_state_dict({}); }), "cannot load" + rest);
    EXPECT_EQ(in_scope([&] { average.copy_to_model(); }), "cannot copy from" + rest);
  }
  EXPECT_EQ(average.steps(), 0);
  auto state = average.state_dict();
  state.erase("parameters/bias");
  EXPECT_EQ(
      refusal([&] { average.load_state_dict(state); }),
      "the saved state does not fit the WeightAverage, and nothing was changed; 1 difference:\n"
      "  parameters/bias: missing in the saved state");
  model->weight.set_data(at::zeros({5, 5}));
  EXPECT_EQ(refusal([&] { average.update(); }),
            "'weight' has shape [5, 5] on cpu now, but its average has [3, 2] on cpu; make the "
            "WeightAverage when the model has its final form");
  EXPECT_EQ(average.steps(), 0);
}

}  // namespace
}  // namespace torchlore
