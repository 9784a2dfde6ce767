// A process that runs another autograd engine, as Python's torch does. It has a program of its own,
// because the engine is the process's.
#include <gtest/gtest.h>
#include <torch/csrc/autograd/engine.h>

#include "support/message.hpp"
#include "torchlore/intercept/saved_tensor_scope.hpp"

namespace torchlore {
namespace {

class ForeignEngine : public torch::autograd::Engine {};

torch::autograd::Engine& foreign_engine() {
  static auto* engine = new ForeignEngine;
  return *engine;
}

TEST(SavedTensorScope, RefusesToReplaceAnotherEngine) {
  torch::autograd::set_default_engine_stub(&foreign_engine);
  const auto make = [] {
    SavedTensorScope scope([](const at::Tensor& t) { return t; },
                           [](const at::Tensor& t) { return t; });
  };
  EXPECT_EQ(testing::message_of(make),
            "torchlore's SavedTensorScope needs LibTorch's own autograd engine, but this process "
            "runs another one (Python's torch brings its own); use it in programs without it");
  EXPECT_EQ(&torch::autograd::Engine::get_default_engine(), &foreign_engine());
}

}  // namespace
}  // namespace torchlore
