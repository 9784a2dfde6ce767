#include "torchlore/precision/loss_scaler.hpp"

#include <ATen/Functions.h>
#include <gtest/gtest.h>
#include <torch/optim/adamw.h>
#include <torch/optim/lbfgs.h>
#include <torch/optim/sgd.h>

#include <limits>
#include <string>
#include <vector>

#include "support/message.hpp"
#include "support/tolerance.hpp"

namespace torchlore {
namespace {

using testing::message_of;
using testing::same;

constexpr float kInf = std::numeric_limits<float>::infinity();

at::Tensor parameter(at::Tensor value) { return value.requires_grad_(true); }

torch::optim::SGD sgd(std::vector<at::Tensor> parameters, double lr = 1.0) {
  return torch::optim::SGD(std::move(parameters), torch::optim::SGDOptions(lr));
}

/// One parameter of ones, its optimizer, and a scaler that has scaled a loss.
struct Loop {
  explicit Loop(LossScalerOptions options = {}) : scaler(std::move(options)) {
    scaler.scale(weight.sum()).backward();
  }
  void set_gradient(float value) { weight.mutable_grad() = at::full({3}, value); }
  /// One whole step with this (scaled) gradient; returns whether it was made.
  bool step(float gradient) {
    set_gradient(gradient);
    const bool stepped = scaler.step(optimizer);
    scaler.update();
    return stepped;
  }
  int64_t tracker() const { return state_int(scaler.state_dict(), "_growth_tracker"); }

  at::Tensor weight = parameter(at::ones({3}));
  torch::optim::SGD optimizer = sgd({weight});
  LossScaler scaler;
};

TEST(LossScaler, StepsAsWithoutAScaler) {
  Loop s;
  EXPECT_TRUE(same(s.weight.grad(), at::full({3}, 65536.0f)));
  EXPECT_TRUE(s.scaler.step(s.optimizer));
  s.scaler.update();
  EXPECT_TRUE(same(s.weight, at::zeros({3})));
  EXPECT_TRUE(same(s.weight.grad(), at::ones({3})));
  EXPECT_EQ(s.scaler.get_scale(), 65536);
  EXPECT_EQ(s.tracker(), 1);
}

TEST(LossScaler, SkipsTheStepAndBacksOffOnOverflow) {
  for (const float bad : {kInf, -kInf, std::numeric_limits<float>::quiet_NaN()}) {
    Loop s;
    EXPECT_FALSE(s.step(bad));
    EXPECT_TRUE(same(s.weight, at::ones({3})));
    EXPECT_EQ(s.scaler.get_scale(), 32768);
    EXPECT_EQ(s.tracker(), 0);
  }
}

TEST(LossScaler, GrowsAfterTheInterval) {
  Loop s({.init_scale = 4.0, .growth_factor = 2.0, .backoff_factor = 0.25, .growth_interval = 2});
  s.step(0);
  EXPECT_EQ(s.scaler.get_scale(), 4);
  s.step(0);
  EXPECT_EQ(s.scaler.get_scale(), 8);
  EXPECT_EQ(s.tracker(), 0);
  s.step(kInf);
  EXPECT_EQ(s.scaler.get_scale(), 2);
}

}  // namespace
}  // namespace torchlore
