// ActivationBudget over ops and their traps: in-place, views, random numbers, several results.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/custom_function.h>

#include "budget_support.hpp"
#include "torchlore/precision/autocast.hpp"

namespace torchlore {
namespace {

using testing::BudgetCase;
using testing::expect_exact;

struct ActivationBudgetOps : ::testing::Test {
  ActivationBudgetOps() {
    at::set_num_threads(1);
    testing::seed(0);
    x = at::randn({16, 64});
    w = at::randn({64, 64}).requires_grad_();
  }
  ActivationBudgetStats exact(std::function<at::Tensor()> loss) const {
    return expect_exact({.parameters = {w}, .loss = std::move(loss)});
  }
  at::Tensor x;
  at::Tensor w;
};

TEST_F(ActivationBudgetOps, DropsAndComputesAgain) {
  const auto stats = exact([&] { return x.matmul(w).tanh().matmul(w).sigmoid().pow(2).mean(); });
  EXPECT_GT(stats.evictions, 0);
  EXPECT_GT(stats.replayed_ops, 0);
  EXPECT_EQ(stats.pinned_bytes, 0);
}

TEST_F(ActivationBudgetOps, ViewsInPlaceSlicesCatSplit) {
  exact([&] {
    auto h = x.matmul(w);
    auto b = at::zeros({16, 64});
    b.slice(1, 0, 32).copy_(h.slice(1, 32, 64));
    b.slice(1, 32, 64).add_(h.slice(1, 0, 32).exp());
    auto c = at::cat({b, h.tanh()}, 1).split(32, 1);
    auto d = at::stack({c[0], c[3]}).sigmoid();
    d = d.transpose(0, 1).contiguous().view({16, 64});
    d.mul_(h);
    d = d / (d.detach().abs().max() + 1);
    return d.matmul(w.t()).softmax(1).log().mul(h).mean();
  });
}

TEST_F(ActivationBudgetOps, OpsThatSaveWhatTheyOverwrite) {
  exact([&] {
    auto h = x.matmul(w);
    auto g = h.sin();
    g.mul_(h.cos());
    g.clamp_(-.9, .9);
    g.unsqueeze_(0).squeeze_(0);
    g.t_();
    return g.pow(3).sum();
  });
}

TEST_F(ActivationBudgetOps, SavedViewsFollowTheNewestVersion) {
  exact([&] {
    auto gates = x.matmul(w).unsafe_chunk(4, 1);
    auto i = gates[0].sigmoid_();
    auto f = gates[1].sigmoid_();
    auto g = gates[2].tanh_();
    return (i * g + f * f).tanh().mul(gates[3].sigmoid_()).mean();
  });
}

TEST_F(ActivationBudgetOps, RandomNumbersOfAllKinds) {
  exact([&] {
    auto h = x.matmul(w);
    h = h * at::rand_like(h) + at::randn({16, 64}) * h.pow(2);
    h = at::rrelu(h, .1, .3, true);
    auto n = at::empty_like(h).normal_(0, 1);
    h = h * n.sigmoid().bernoulli();
    h = at::dropout(h, .3, true) + at::feature_alpha_dropout(h, .2, true);
    auto g = at::detail::createCPUGenerator(77);
    h = h + at::rand({16, 64}, g) * h.sigmoid() + h * at::rand({16, 64}, g);
    return h.sigmoid().mul(h).mean();
  });
}

struct Gate : torch::autograd::Function<Gate> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& a,
                            const at::Tensor& b) {
    auto s = at::sigmoid(a * b);
    context->save_for_backward({a, b, s});
    return s * 2;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradient) {
    const auto saved = context->get_saved_variables();
    const auto d = gradient[0] * 2 * saved[2] * (1 - saved[2]);
    return {d * saved[1], d * saved[0]};
  }
};

TEST_F(ActivationBudgetOps, CustomFunctions) {
  exact([&] {
    auto h = x.matmul(w);
    for (int i = 0; i < 3; ++i) h = Gate::apply(h.tanh(), w.slice(0, 0, 16));
    return h.pow(2).mean();
  });
}

TEST_F(ActivationBudgetOps, SeveralResultsAndIndices) {
  const auto index = at::randint(16, {40});
  exact([&] {
    auto h = x.matmul(w).index({index});
    h = at::where(h > 0, h.exp(), h.sigmoid());
    h = std::get<0>(h.sort(1));
    h = std::get<0>(h.topk(10, 1));
    h = h.index_put({at::arange(4)}, h.slice(0, 4, 8).tanh(), true);
    h = at::einsum("ij,kj->ik", {h, h.cos()});
    return h.norm() + std::get<0>(h.max(1)).var() + h.logsumexp(1).mean() +
           h.cumsum(0).prod(1).mean();
  });
}

TEST_F(ActivationBudgetOps, LinearAlgebraAndFourier) {
  exact([&] {
    const auto a = w.matmul(w.t()) + at::eye(64) * 10;
    const auto l = at::linalg_cholesky(a);
    const auto s = at::linalg_solve(a, x.t());
    const auto f = at::fft_rfft(s, 8, 0).abs();
    return l.pow(2).mean() + f.exp().mean() + std::get<1>(at::linalg_slogdet(a));
  });
}

TEST_F(ActivationBudgetOps, NumbersAndTypes) {
  exact([&] {
    auto h = x.to(at::kDouble).matmul(w.to(at::kDouble));
    h = 2.5 * h / (h.abs() + 1) - 1;
    h = h.pow(2.5 * at::ones({})).nan_to_num();
    return (h * (h > 0).to(at::kInt)).to(at::kFloat).mean();
  });
}

TEST_F(ActivationBudgetOps, ComplexAndConjugateViews) {
  exact([&] {
    const auto h = at::complex(x.matmul(w), x.matmul(w).tanh());
    const auto g = h.conj().mul(h.exp()).matmul(h.mH());
    return at::view_as_real(g).pow(2).mean() + at::imag(g).sin().mean();
  });
}

TEST_F(ActivationBudgetOps, FillingATensorByHand) {
  exact([&] {
    const auto h = x.matmul(w);
    const auto mask = at::zeros({16, 64});
    auto a = mask.accessor<float, 2>();
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j <= i; ++j) a[i][j] = -3;
    }
    return (h.exp() * mask.exp()).mul(h).mean();
  });
}

TEST_F(ActivationBudgetOps, WritingByHandIntoTheResultOfAnOp) {
  const auto stats = exact([&] {
    const auto h = x.matmul(w);
    const auto m = h.detach().sign();
    auto a = m.accessor<float, 2>();
    for (int i = 0; i < 16; ++i) a[i][0] = 9;
    return (h.exp() * m.exp()).mul(h).mean();
  });
  EXPECT_GT(stats.touched, 0);
  EXPECT_GT(stats.pinned_bytes, 0);
}

TEST_F(ActivationBudgetOps, WritingByHandAfterUseAndAfterSave) {
  const auto stats = exact([&] {
    const auto h = x.matmul(w).tanh();
    const auto a = h.detach().mul(2);
    const auto k = (a + 1).sin();
    a.data_ptr<float>()[5] = 3;
    const auto q = (a + 1).cos() * h;
    const auto e = h.exp();
    e.detach().data_ptr<float>()[7] = 2;
    const auto c = x.matmul(w).clone();
    const auto d = c.detach();
    d.accessor<float, 2>()[2][3] = 1;
    return (k * q * e * c.sigmoid()).mean();
  });
  EXPECT_GE(stats.touched, 3);
}

TEST_F(ActivationBudgetOps, AnInputChangedInsideTheScope) {
  const auto input = x.clone();
  exact([&] {
    input.copy_(x);
    const auto k = x.matmul(w).tanh();
    const auto q = (input * 2 + k).sin();
    input.add_(1);
    return (q * k.exp() + input.matmul(w).tanh()).mean();
  });
}

TEST_F(ActivationBudgetOps, NoGradParts) {
  exact([&] {
    at::Tensor target;
    {
      const at::NoGradGuard no_grad;
      target = x.matmul(w).relu_().softmax(1);
    }
    const auto h = x.matmul(w).log_softmax(1);
    return -(target * h).sum(1).mean() + at::mse_loss(h, target) + at::kl_div(h, target);
  });
}

TEST_F(ActivationBudgetOps, InferenceModeInside) {
  exact([&] {
    at::Tensor scale;
    {
      const c10::InferenceMode inference;
      scale = x.matmul(w).abs().mean();
    }
    const auto h = x.matmul(w).tanh();
    return (h.exp() * scale.item<double>()).mean() + h.pow(2).mean();
  });
}

TEST_F(ActivationBudgetOps, SparseAndOpaqueTensorsAreKept) {
  exact([&] {
    const auto h = at::mm(at::eye(64).to_sparse(), w).tanh();
    const auto s = at::sparse_coo_tensor(at::tensor({0, 1, 1, 0}, at::kLong).view({2, 2}),
                                         at::ones({2}), {2, 64});
    return h.to_mkldnn().to_dense().pow(2).mean() + s.matmul(w).exp().mean();
  });
}

TEST_F(ActivationBudgetOps, AutocastWithItsCache) {
  exact([&] {
    const Autocast amp(at::kCPU);
    auto h = x;
    for (int i = 0; i < 4; ++i) h = at::layer_norm(at::linear(h, w).relu_(), {64}).tanh();
    h = at::matmul(h, w) + at::addmm(h, h, w);
    return h.to(at::kFloat).pow(2).mean();
  });
}

TEST_F(ActivationBudgetOps, AutocastSwitchedOffInside) {
  exact([&] {
    const Autocast amp(at::kCPU, at::kHalf);
    auto h = at::linear(x, w).tanh();
    {
      const Autocast off(at::kCPU, std::nullopt, {.enabled = false});
      h = at::linear(h.to(at::kFloat), w).tanh();
    }
    return at::linear(h, w).to(at::kFloat).pow(2).mean();
  });
}

TEST_F(ActivationBudgetOps, BatchNormInEvaluationBeforeAndAfterTraining) {
  const auto mean = at::zeros({64});
  const auto variance = at::ones({64});
  const auto norm = [&](const at::Tensor& h, bool training) {
    return at::batch_norm(h, {}, {}, mean, variance, training, 0.5, 1e-5, false);
  };
  expect_exact({.parameters = {w},
                .loss =
                    [&] {
                      const auto h = x.matmul(w);
                      // Needs the statistics as they are before the second call changes them.
                      const auto before = norm(h, false).tanh();
                      const auto during = norm(h.sin(), true).tanh();
                      const auto after = norm(h, false).tanh();
                      return (before * during * after).exp().mean();
                    },
                .buffers = {mean, variance}});
}

TEST_F(ActivationBudgetOps, ResultsWrittenIntoGivenTensors) {
  exact([&] {
    const auto h = x.matmul(w).tanh();
    const auto out = at::empty({16, 64});
    {
      const at::NoGradGuard no_grad;
      at::mul_out(const_cast<at::Tensor&>(out), h, h);
      const_cast<at::Tensor&>(out).resize_({16, 32}).add_(1);
    }
    return (h.slice(1, 0, 32).exp() * out.sigmoid()).mean();
  });
}

TEST_F(ActivationBudgetOps, AttentionAndEmbedding) {
  const auto table = at::randn({50, 32}).requires_grad_();
  const auto head = at::randn({50, 32}).requires_grad_();
  const auto id = at::randint(50, {4, 12});
  expect_exact({.parameters = {table, head}, .loss = [&] {
                  auto h = at::embedding(table, id).view({4, 12, 4, 8}).transpose(1, 2);
                  h = at::scaled_dot_product_attention(h, h, h, {}, 0., true);
                  h = at::gelu(h.transpose(1, 2).reshape({4, 12, 32}));
                  h = h.index_select(1, at::randperm(12));
                  return at::cross_entropy_loss(at::linear(h, head).view({-1, 50}), id.view({-1}));
                }});
}

}  // namespace
}  // namespace torchlore
