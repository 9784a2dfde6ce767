#include "torchlore/memory/offload_activations.hpp"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/nn/modules/transformerlayer.h>

#include <thread>

#include "support/message.hpp"
#include "support/temporary_folder.hpp"
#include "support/tolerance.hpp"
#include "torchlore/memory/compress_activations.hpp"

namespace torchlore {
namespace {

using testing::message_of;
using testing::same;
using testing::TemporaryFolder;

/// A layer with dropout, views, slices, expanded and transposed tensors, and masks of other dtypes.
struct Task {
  torch::nn::TransformerEncoderLayer layer{
      torch::nn::TransformerEncoderLayerOptions(16, 4).dim_feedforward(32).dropout(0.1)};
  at::Tensor x = at::randn({5, 3, 16});

  at::Tensor loss() {
    at::manual_seed(3);
    const auto h = layer->forward(x);
    const auto half = h.slice(2, 0, 8);
    const auto wide = half.sum(0, /*keepdim=*/true).expand({5, 3, 8});
    const auto chosen =
        at::where(wide > 0, wide.sin() * half.exp(), half.transpose(0, 1).sin().transpose(0, 1));
    return chosen.index_select(1, at::tensor({2, 0, 1})).pow(2).mean();
  }
  std::vector<at::Tensor> gradients(const at::Tensor& loss) {
    layer->zero_grad();
    loss.backward({}, /*retain_graph=*/true);
    std::vector<at::Tensor> result;
    for (const auto& p : layer->parameters()) result.push_back(p.grad().clone());
    return result;
  }
};

TEST(OffloadActivations, ToAFileChangesNoBit) {
  Task task;
  const auto expected = task.gradients(task.loss());
  const TemporaryFolder folder;
  at::Tensor loss;
  {
    OffloadActivations offload({.folder = folder.path(), .min_bytes = 0});
    loss = task.loss();
    EXPECT_GT(offload.stats().tensors, 20);
    EXPECT_EQ(offload.stats().encoded_bytes, 0);
  }
  for (int round = 0; round < 2; ++round) {
    const auto gradients = task.gradients(loss);
    for (size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(same(gradients[i], expected[i])) << i;
  }
}

TEST(OffloadActivations, LeavesNoFileBehind) {
  const TemporaryFolder folder;
  const auto w = at::randn({64, 64}).set_requires_grad(true);
  at::Tensor loss;
  {
    OffloadActivations offload({.folder = folder.path()});
    loss = w.exp().sum();
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
  loss.backward();
  EXPECT_TRUE(same(w.grad(), w.detach().exp()));
}

TEST(OffloadActivations, FreesTheOriginal) {
  const TemporaryFolder folder;
  const auto w = at::randn({64, 64}).set_requires_grad(true);
  c10::weak_intrusive_ptr<c10::StorageImpl> hidden(c10::Storage().getWeakStorageImpl());
  at::Tensor loss;
  {
    OffloadActivations offload({.folder = folder.path()});
    const auto h = w.exp();
    hidden = h.storage().getWeakStorageImpl();
    loss = h.sum();
  }
  EXPECT_TRUE(hidden.expired());
}

TEST(OffloadActivations, LeavesTheHostsTensorsOnTheHost) {
  const auto w = at::randn({64, 64}).set_requires_grad(true);
  OffloadActivations offload;
  const auto loss = w.exp().sum();
  EXPECT_EQ(offload.stats().tensors, 0);
}

TEST(OffloadActivations, TakesWhatACompressionInsideItPacked) {
  const TemporaryFolder folder;
  const auto w = at::randn({64, 64}).set_requires_grad(true);
  at::Tensor loss;
  {
    OffloadActivations offload({.folder = folder.path()});
    CompressActivations compress(at::kBFloat16);
    loss = w.exp().sum();
    EXPECT_EQ(compress.stats().encoded_bytes, 64 * 64 * 2);
    EXPECT_EQ(offload.stats().original_bytes, 64 * 64 * 2);
  }
  loss.backward();
  EXPECT_TRUE(same(w.grad(), w.detach().exp().to(at::kBFloat16).to(at::kFloat)));
}

TEST(OffloadActivations, DoubleBackwardIsExact) {
  const TemporaryFolder folder;
  const auto w = at::randn({8, 8}).set_requires_grad(true);
  const auto second = [&](const at::Tensor& y) {
    const auto first = torch::autograd::grad({y}, {w}, {}, true, /*create_graph=*/true)[0];
    return torch::autograd::grad({first.pow(2).sum()}, {w})[0];
  };
  const auto f = [&] { return (w.exp() * w.sin()).tanh().sum(); };
  const auto expected = second(f());
  at::Tensor y;
  {
    OffloadActivations offload({.folder = folder.path(), .min_bytes = 0});
    y = f();
  }
  EXPECT_TRUE(same(second(y), expected));
}

TEST(OffloadActivations, TwoThreadsHaveTheirOwn) {
  const TemporaryFolder folder;
  const auto run = [&](const at::Tensor& w) {
    at::Tensor loss;
    {
      OffloadActivations offload({.folder = folder.path(), .min_bytes = 0});
      auto h = w;
      for (int i = 0; i < 50; ++i) h = h.sin() + w;
      loss = h.sum();
    }
    loss.backward();
  };
  const auto a = at::randn({32, 32}).set_requires_grad(true);
  const auto b = a.detach().clone().set_requires_grad(true);
  std::thread other([&] { run(b); });
  run(a);
  other.join();
  EXPECT_TRUE(same(a.grad(), b.grad()));
}

TEST(OffloadActivations, SaysWhatIsWrong) {
  EXPECT_EQ(
      message_of([] { OffloadActivations offload({.folder = "/nowhere"}); }),
      "OffloadActivations cannot make a file in \"/nowhere\": No such file or directory; name "
      "a folder that exists and can be written");
  EXPECT_EQ(message_of([] { OffloadActivations offload({.min_bytes = -5}); }),
            "OffloadActivations' min_bytes must be a finite number, 0 or above, but is -5");
}

}  // namespace
}  // namespace torchlore
