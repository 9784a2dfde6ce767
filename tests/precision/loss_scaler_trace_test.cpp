// Replays traces of Python's torch.amp.GradScaler (tests/oracles/loss_scaler_traces.py).
#include <ATen/Functions.h>
#include <gtest/gtest.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

#include <fstream>
#include <limits>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "support/tolerance.hpp"
#include "test_paths.hpp"
#include "torchlore/gradient/clip_grad.hpp"
#include "torchlore/precision/loss_scaler.hpp"

namespace torchlore {
namespace {

struct Poison {
  int64_t step;
  std::string parameter;
  double value;
};

struct NewScale {
  int64_t step;
  double value;
  bool as_tensor;
};

struct Step {
  double scale;
  int64_t tracker;
  std::string stepped;
  std::vector<double> parameters;
};

struct Scenario {
  std::string name;
  LossScalerOptions scaler;
  std::string optimizer;
  double clip = 0;
  int64_t micro = 1;
  std::vector<Poison> poison;
  std::vector<NewScale> new_scale;
  std::vector<int64_t> reload;
  std::vector<Step> steps;
};

/// Streams do not read "inf" and "nan".
double number(std::istream& in) {
  std::string text;
  in >> text;
  return std::stod(text);
}

void read_line(const std::string& text, Scenario& scenario) {
  std::istringstream in(text);
  std::string what;
  in >> what;
  if (what == "scaler") {
    scenario.scaler.init_scale = number(in);
    scenario.scaler.growth_factor = number(in);
    scenario.scaler.backoff_factor = number(in);
    in >> scenario.scaler.growth_interval;
  } else if (what == "train") {
    in >> scenario.optimizer;
    scenario.clip = number(in);
    in >> scenario.micro;
  } else if (what == "poison") {
    auto& poison = scenario.poison.emplace_back();
    in >> poison.step >> poison.parameter;
    poison.value = number(in);
  } else if (what == "set") {
    auto& set = scenario.new_scale.emplace_back();
    std::string form;
    in >> set.step;
    set.value = number(in);
    in >> form;
    set.as_tensor = form == "tensor";
  } else if (what == "reload") {
    in >> scenario.reload.emplace_back();
  } else if (what == "step") {
    auto& step = scenario.steps.emplace_back();
    int64_t index = 0;
    in >> index;
    step.scale = number(in);
    in >> step.tracker >> step.stepped;
    for (int i = 0; i < 8; ++i) step.parameters.push_back(number(in));
  } else {
    ADD_FAILURE() << "unknown line: " << text;
  }
}

std::vector<Scenario> read_scenarios() {
  std::ifstream file(TORCHLORE_TEST_DATA "/loss_scaler_traces.txt");
  std::vector<Scenario> scenarios;
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("scenario ")) {
      scenarios.emplace_back().name = line.substr(9);
    } else {
      read_line(line, scenarios.back());
    }
  }
  return scenarios;
}

/// The regression y = x w + b of the oracle, on its data.
class Model {
 public:
  at::Tensor loss(int64_t step, int64_t micro) const {
    const int64_t seed = step * 31 + micro * 13;
    const auto x = at::empty({4, 3});
    const auto y = at::empty({4, 2});
    for (int64_t i = 0; i < 4; ++i) {
      for (int64_t j = 0; j < 3; ++j) x[i][j] = quarters((seed + i * 7 + j * 5) % 11 - 5);
      for (int64_t j = 0; j < 2; ++j) y[i][j] = quarters((seed + i * 3 + j * 8) % 7 - 3);
    }
    return (x.mm(w) + b - y).square().mean();
  }
  at::Tensor all() const { return at::cat({w.detach().view(-1), b.detach()}); }

  static double quarters(int64_t count) { return static_cast<double>(count) / 4; }

  at::Tensor w = (at::arange(6, at::kFloat).reshape({3, 2}) / 8 - 0.25).requires_grad_(true);
  at::Tensor b = at::tensor({0.5f, -0.5f}).requires_grad_(true);
};

using Optimizers = std::vector<std::unique_ptr<torch::optim::Optimizer>>;

Optimizers make_optimizers(const std::string& kind, const Model& model) {
  const auto sgd = [](std::vector<at::Tensor> parameters) {
    return std::make_unique<torch::optim::SGD>(std::move(parameters),
                                               torch::optim::SGDOptions(0.125).momentum(0.5));
  };
  const auto adamw = [](std::vector<at::Tensor> parameters) {
    return std::make_unique<torch::optim::AdamW>(std::move(parameters),
                                                 torch::optim::AdamWOptions(0.0625));
  };
  Optimizers optimizers;
  if (kind == "both") {
    optimizers.push_back(sgd({model.w}));
    optimizers.push_back(adamw({model.b}));
  } else if (kind == "sgd") {
    optimizers.push_back(sgd({model.w, model.b}));
  } else {
    optimizers.push_back(adamw({model.w, model.b}));
  }
  return optimizers;
}

class Replay {
 public:
  explicit Replay(const Scenario& scenario)
      : scenario_(scenario), optimizers_(make_optimizers(scenario.optimizer, model_)) {}

  void step(int64_t index) {
    const auto& expected = scenario_.steps[static_cast<size_t>(index)];
    for (auto& optimizer : optimizers_) optimizer->zero_grad();
    backward(index);
    clip();
    std::string stepped;
    for (auto& optimizer : optimizers_) stepped += scaler_->step(*optimizer) ? '1' : '0';
    update(index);
    const auto state = scaler_->state_dict();
    EXPECT_EQ(scaler_->get_scale(), expected.scale);
    EXPECT_EQ(state_int(state, "_growth_tracker"), expected.tracker);
    EXPECT_EQ(stepped, expected.stepped);
    EXPECT_TRUE(testing::close(model_.all(), at::tensor(expected.parameters, at::kFloat)));
    for (const int64_t at : scenario_.reload) {
      if (at != index) continue;
      scaler_ = std::make_unique<LossScaler>(scenario_.scaler);
      scaler_->load_state_dict(state);
    }
  }

 private:
  void backward(int64_t index) {
    for (int64_t micro = 0; micro < scenario_.micro; ++micro) {
      const auto loss = model_.loss(index, micro) / scenario_.micro;
      scaler_->scale(loss).backward();
    }
    for (const auto& [at, which, value] : scenario_.poison) {
      if (at == index) (which == "w" ? model_.w : model_.b).grad().view(-1)[0] = value;
    }
  }

  void clip() {
    if (scenario_.clip == 0) return;
    for (auto& optimizer : optimizers_) scaler_->unscale_(*optimizer);
    clip_grad_norm_({model_.w, model_.b}, scenario_.clip);
  }

  void update(int64_t index) {
    for (const auto& [at, value, as_tensor] : scenario_.new_scale) {
      if (at != index) continue;
      if (as_tensor) return scaler_->update(at::scalar_tensor(value, at::kFloat));
      return scaler_->update(value);
    }
    scaler_->update();
  }

  const Scenario& scenario_;
  Model model_;
  Optimizers optimizers_;
  std::unique_ptr<LossScaler> scaler_ = std::make_unique<LossScaler>(scenario_.scaler);
};

TEST(LossScalerTrace, EqualsGradScalerStepByStep) {
  const auto scenarios = read_scenarios();
  ASSERT_GE(scenarios.size(), 13);
  for (const auto& scenario : scenarios) {
    Replay replay(scenario);
    for (int64_t i = 0; i < static_cast<int64_t>(scenario.steps.size()); ++i) {
      SCOPED_TRACE(scenario.name + ", step " + std::to_string(i));
      replay.step(i);
    }
  }
}

}  // namespace
}  // namespace torchlore
