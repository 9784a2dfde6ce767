// ActivationBudget and the ways to run backward.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>
#include <torch/nn/modules/rnn.h>

#include <array>
#include <thread>

#include "budget_support.hpp"
#include "support/message.hpp"
#include "torchlore/precision/autocast.hpp"

namespace torchlore {
namespace {

using testing::message_of;
using testing::same_bytes;
using torch::autograd::grad;

using Stats = std::shared_ptr<const ActivationBudgetStats>;

struct ActivationBudgetBackward : ::testing::Test {
  ActivationBudgetBackward() {
    at::set_num_threads(1);
    testing::seed(0);
    x = at::randn({16, 64});
    w = at::randn({64, 64}).requires_grad_();
  }
  /// f() under a budget of nothing.
  template <typename F>
  at::Tensor without_memory(const F& f) {
    ActivationBudget budget(KiB(0));
    stats = budget.stats();
    return f();
  }
  at::Tensor x;
  at::Tensor w;
  Stats stats;
};

TEST_F(ActivationBudgetBackward, TwiceDifferentiated) {
  const auto input = x.clone().requires_grad_();
  const auto f = [&] { return (input.matmul(w).tanh().matmul(w).softmax(1) * input).sum(); };
  const auto second = [&](const at::Tensor& loss) {
    const auto first = grad({loss}, {input}, {}, true, true)[0];
    return grad({first.pow(2).sum()}, {w})[0];
  };
  const auto expected = second(f());
  EXPECT_TRUE(same_bytes(second(without_memory(f)), expected));
  EXPECT_GT(stats->replayed_ops, 0);
}

TEST_F(ActivationBudgetBackward, ARetainedGraphServesAgain) {
  const auto f = [&] { return x.matmul(w).tanh().matmul(w).sigmoid().sum(); };
  const auto expected = grad({f()}, {w})[0];
  const auto loss = without_memory(f);
  EXPECT_TRUE(same_bytes(grad({loss}, {w}, {}, true)[0], expected));
  EXPECT_TRUE(same_bytes(grad({loss}, {w}, {}, true)[0], expected));
  EXPECT_TRUE(same_bytes(grad({loss}, {w})[0], expected));
}

TEST_F(ActivationBudgetBackward, InsideTheScopeStepAfterStep) {
  const auto f = [&] { return x.matmul(w).tanh().matmul(w).sigmoid().sum(); };
  const auto expected = grad({f()}, {w})[0];
  ActivationBudget budget(KiB(4));
  for (int step = 0; step < 3; ++step) EXPECT_TRUE(same_bytes(grad({f()}, {w})[0], expected));
}

TEST_F(ActivationBudgetBackward, AnOptimizerInsideTheScope) {
  const auto train = [&](bool budgeted) {
    const auto p = w.detach().clone().requires_grad_();
    std::unique_ptr<ActivationBudget> budget;
    if (budgeted) budget = std::make_unique<ActivationBudget>(KiB(4));
    for (int step = 0; step < 4; ++step) {
      const auto g = grad({x.matmul(p).tanh().matmul(p).sigmoid().sum()}, {p})[0];
      const at::NoGradGuard no_grad;
      p.sub_(g, 0.1);
    }
    return p.detach();
  };
  EXPECT_TRUE(same_bytes(train(true), train(false)));
}

TEST_F(ActivationBudgetBackward, DoubleBackwardInsideTheScope) {
  const auto input = x.clone().requires_grad_();
  const auto f = [&] {
    const auto loss = (input.matmul(w).tanh().matmul(w).softmax(1) * input).sum();
    const auto first = grad({loss}, {input}, {}, true, true)[0];
    return grad({first.pow(2).sum()}, {w})[0];
  };
  const auto expected = f();
  EXPECT_TRUE(same_bytes(without_memory(f), expected));
}

TEST_F(ActivationBudgetBackward, OnOtherThreads) {
  const auto f = [](const at::Tensor& a, const at::Tensor& p) {
    auto h = a.matmul(p);
    for (int i = 0; i < 30; ++i) h = at::layer_norm(h, {64}).tanh().matmul(p);
    return h.pow(2).mean();
  };
  std::array<at::Tensor, 4> gradients;
  const auto work = [&](size_t i, bool budgeted) {
    const auto p = w.detach().clone().requires_grad_();
    const auto a = x + static_cast<int64_t>(i % 2);
    at::Tensor loss;
    if (budgeted) {
      ActivationBudget budget(Bytes(20000));
      loss = f(a, p);
    } else {
      loss = f(a, p);
    }
    std::thread([&] { gradients[i] = grad({loss}, {p})[0]; }).join();
  };
  work(0, false);
  work(1, false);
  std::thread one(work, 2, true);
  std::thread two(work, 3, true);
  one.join();
  two.join();
  EXPECT_TRUE(same_bytes(gradients[2], gradients[0]));
  EXPECT_TRUE(same_bytes(gradients[3], gradients[1]));
}

TEST_F(ActivationBudgetBackward, TwoBackwardsOfOneGraphAtOnce) {
  const auto f = [&] {
    auto h = x.matmul(w);
    for (int i = 0; i < 20; ++i) h = at::layer_norm(h, {64}).tanh().matmul(w);
    return std::pair(h.pow(2).mean(), h.sin().mean());
  };
  const auto plain = f();
  const auto expected_a = grad({plain.first}, {w}, {}, true)[0];
  const auto expected_b = grad({plain.second}, {w}, {}, true)[0];
  std::pair<at::Tensor, at::Tensor> losses;
  {
    ActivationBudget budget(KiB(8));
    losses = f();
  }
  at::Tensor a;
  at::Tensor b;
  std::thread one([&] { a = grad({losses.first}, {w}, {}, true)[0]; });
  std::thread two([&] { b = grad({losses.second}, {w}, {}, true)[0]; });
  one.join();
  two.join();
  EXPECT_TRUE(same_bytes(a, expected_a));
  EXPECT_TRUE(same_bytes(b, expected_b));
}

TEST_F(ActivationBudgetBackward, HooksOfTheUserRunAsInAPlainRun) {
  const auto run = [&](bool budgeted) {
    std::vector<at::Tensor> seen;
    const auto f = [&] {
      auto h = x.matmul(w).tanh();
      h.register_hook([&seen](const at::Tensor& g) {
        seen.push_back(g.clone());
        return g * 0.5;
      });
      auto y = h.matmul(w).sigmoid();
      y.register_hook([&seen](const at::Tensor& g) { seen.push_back(g.clone()); });
      return (y * h).sum();
    };
    seen.insert(seen.begin(), grad({budgeted ? without_memory(f) : f()}, {w})[0]);
    return seen;
  };
  const auto expected = run(false);
  const auto actual = run(true);
  ASSERT_EQ(actual.size(), 3u);
  for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(same_bytes(actual[i], expected[i])) << i;
  EXPECT_GT(stats->replayed_ops, 0);
}

TEST_F(ActivationBudgetBackward, WhatForwardModeDerivativesRunThroughIsPinned) {
  const auto run = [&](bool budgeted) {
    const auto level = torch::autograd::forward_ad::enter_dual_level();
    const auto f = [&] {
      const auto dual = at::_make_dual(x, at::ones_like(x), static_cast<int64_t>(level));
      return dual.matmul(w).tanh().matmul(w).sigmoid();
    };
    const auto y = budgeted ? without_memory(f) : f();
    const auto [primal, tangent] = at::_unpack_dual(y, static_cast<int64_t>(level));
    auto both = grad({primal.sum() + tangent.pow(2).sum()}, {w});
    both.push_back(tangent.detach().clone());
    torch::autograd::forward_ad::exit_dual_level(level);
    return both;
  };
  const auto expected = run(false);
  const auto actual = run(true);
  EXPECT_TRUE(same_bytes(actual[0], expected[0]));
  EXPECT_TRUE(same_bytes(actual[1], expected[1]));
  EXPECT_GT(stats->pinned_bytes, 0);
}

TEST_F(ActivationBudgetBackward, LongChainsNeedNoStack) {
  const auto f = [&] {
    auto h = x.matmul(w);
    for (int i = 0; i < 20000; ++i) h = (h * 1.0001).sin();
    return h.sum();
  };
  const auto expected = grad({f()}, {w})[0];
  at::Tensor loss;
  {
    ActivationBudget budget(MiB(20));
    loss = f();
  }
  EXPECT_TRUE(same_bytes(grad({loss}, {w})[0], expected));
  // A chain that is never run, and one that no tensor was saved of.
  static_cast<void>(without_memory(f));
  const at::NoGradGuard no_grad;
  static_cast<void>(without_memory(f));
}

TEST_F(ActivationBudgetBackward, TruncatedBackpropagation) {
  torch::nn::LSTMCell cell(32, 32);
  const auto s = at::randn({4, 32});
  const auto run = [&](bool budgeted) {
    for (const auto& p : cell->parameters()) p.mutable_grad() = at::Tensor();
    std::tuple<at::Tensor, at::Tensor> state{at::zeros({4, 32}), at::zeros({4, 32})};
    for (int window = 0; window < 5; ++window) {
      at::Tensor loss;
      {
        std::unique_ptr<ActivationBudget> budget;
        if (budgeted) budget = std::make_unique<ActivationBudget>(Bytes(1000));
        for (int t = 0; t < 5; ++t) state = cell->forward(s, state);
        loss = std::get<0>(state).sum();
      }
      loss.backward();
      state = {std::get<0>(state).detach(), std::get<1>(state).detach()};
    }
    return cell->weight_hh.grad().clone();
  };
  EXPECT_TRUE(same_bytes(run(true), run(false)));
}

TEST_F(ActivationBudgetBackward, AChangedParameterIsAnError) {
  const auto loss = without_memory([&] { return (x.matmul(w) + 0).tanh().sum(); });
  {
    const at::NoGradGuard no_grad;
    w.add_(1);
  }
  EXPECT_EQ(message_of([&] { loss.backward(); }),
            "ActivationBudget: a tensor of 16 KiB that backward needs was changed in place after "
            "the forward pass read it (it is at version 2, and was at 1). Change parameters and "
            "inputs after backward, or change a copy");
}

TEST_F(ActivationBudgetBackward, AChangedInputIsAnError) {
  const auto input = x.clone();
  const auto loss = without_memory([&] { return input.matmul(w).tanh().exp().sum(); });
  input.zero_();
  EXPECT_EQ(message_of([&] { loss.backward(); }),
            "ActivationBudget: a tensor of 4 KiB that backward needs was changed in place after "
            "the forward pass read it (it is at version 1, and was at 0). Change parameters and "
            "inputs after backward, or change a copy");
}

TEST_F(ActivationBudgetBackward, FreezingAParameterInBetweenIsAsInAPlainRun) {
  const auto b = at::randn({64}).requires_grad_();
  const auto run = [&](bool budgeted) {
    w.mutable_grad() = b.mutable_grad() = at::Tensor();
    w.requires_grad_(true);
    const auto f = [&] { return (x.matmul(w) + b).tanh().matmul(w).sigmoid().sum(); };
    const auto loss = budgeted ? without_memory(f) : f();
    w.requires_grad_(false);
    loss.backward();
    return std::pair(w.grad(), b.grad());
  };
  const auto expected = run(false);
  const auto actual = run(true);
  EXPECT_TRUE(same_bytes(actual.first, expected.first));
  EXPECT_TRUE(same_bytes(actual.second, expected.second));
}

TEST_F(ActivationBudgetBackward, ASavedResultThatIsOverwrittenAfterTheScopeIsComputedAgain) {
  const auto expected = grad({x.matmul(w).tanh().sum()}, {w})[0];
  at::Tensor h;
  {
    ActivationBudget budget(GiB(1));
    h = x.matmul(w).tanh();
  }
  const auto loss = h.sum();
  {
    const at::NoGradGuard no_grad;
    h.mul_(3);  // a plain run throws
  }
  EXPECT_TRUE(same_bytes(grad({loss}, {w})[0], expected));
}

TEST_F(ActivationBudgetBackward, ASavedValueThatAReplayOverwritesIsComputedAgain) {
  const auto expected = [&] {
    const auto h = x.matmul(w);
    return grad({(h.sin() * (h * 3)).sum()}, {w})[0];
  }();
  const auto loss = without_memory([&] {
    const auto h = x.matmul(w);
    const auto sine = h.sin();  // saves h
    h.mul_(3);                  // a plain run throws
    return (sine * h).sum();    // its replay overwrites h again
  });
  // With the graph kept the new h is still there when the sine asks for the old one.
  EXPECT_TRUE(same_bytes(grad({loss}, {w}, {}, /*retain_graph=*/true)[0], expected));
  EXPECT_TRUE(same_bytes(grad({loss}, {w})[0], expected));
}

TEST_F(ActivationBudgetBackward, WhatANodeNeedsIsComputedInOneReplay) {
  const auto loss = without_memory([&] {
    const auto h = x.matmul(w);
    return (h.sin() * h.cos()).sum();
  });
  EXPECT_EQ(stats->evictions, 3);  // h, its sine, its cosine
  grad({loss}, {w});
  EXPECT_EQ(stats->replays, 2);  // for the product; for the cosine's h, which the sine uses too
  EXPECT_EQ(stats->replayed_ops, 4);  // matmul, sin and cos; matmul
  EXPECT_EQ(stats->evictions, 4);     // h after the first replay; never what a node is using
}

TEST_F(ActivationBudgetBackward, ReplaysDoNotSeeTheScopesAroundBackward) {
  const auto f = [&] { return x.matmul(w).tanh().matmul(w).sigmoid().sum(); };
  const auto gradient = [&](const at::Tensor& loss) {
    const Autocast amp(at::kCPU, at::kBFloat16);  // backward's own products are in bfloat16
    return grad({loss}, {w})[0];
  };
  const auto expected = gradient(f());
  const auto loss = without_memory(f);
  EXPECT_TRUE(same_bytes(gradient(loss), expected));
  EXPECT_GT(stats->replayed_ops, 0);
}

TEST_F(ActivationBudgetBackward, AHandWriteAfterTheScopeIsSeenAsInAPlainRun) {
  const auto run = [&](bool budgeted) {
    at::Tensor h;
    {
      std::unique_ptr<ActivationBudget> budget;
      if (budgeted) budget = std::make_unique<ActivationBudget>(KiB(0));
      h = x.matmul(w).tanh();
    }
    h.detach().data_ptr<float>()[3] = 0.5F;
    return grad({h.sum()}, {w})[0];
  };
  EXPECT_TRUE(same_bytes(run(true), run(false)));
}

TEST_F(ActivationBudgetBackward, AHandWriteIntoWhatWasDroppedIsSeenAlsoWhenItsOwnerIsGone) {
  const auto f = [&] {
    const auto h = x.matmul(w).tanh();
    const auto loss = h.sum();
    h.detach().data_ptr<float>()[3] = 0.5F;
    return loss;
  };
  const auto expected = grad({f()}, {w})[0];
  EXPECT_TRUE(same_bytes(grad({without_memory(f)}, {w})[0], expected));
  EXPECT_EQ(stats->touched, 1);
}

TEST_F(ActivationBudgetBackward, AReplayForAnotherResultDoesNotHideAHandWrite) {
  const auto run = [&](bool budgeted) {
    at::Tensor var;
    const auto f = [&] {
      auto [spread, mean] = at::var_mean(x.matmul(w), 1);
      var = spread;
      const auto first = var.sin();       // saves the variance
      return (first + mean.exp()).sum();  // needs the mean, and runs backward first
    };
    const auto loss = budgeted ? without_memory(f) : f();
    var.detach().data_ptr<float>()[3] = 0.5F;
    return grad({loss}, {w})[0];
  };
  EXPECT_TRUE(same_bytes(run(true), run(false)));
}

TEST_F(ActivationBudgetBackward, AnExceptionInTheForwardLeavesNothingBehind) {
  EXPECT_THROW(without_memory([&] {
                 return x.matmul(w).tanh().matmul(at::ones({3, 3}));
               }),
               c10::Error);
  const auto f = [&] { return x.matmul(w).tanh().sum(); };
  const auto expected = grad({f()}, {w})[0];
  EXPECT_TRUE(same_bytes(grad({without_memory(f)}, {w})[0], expected));
}

/// Runs twice and then fails, once.
int64_t calls_left = -1;
at::Tensor fragile(const at::Tensor& a) {
  TORCH_CHECK(calls_left-- != 0, "the op failed");
  return a.detach().sin();
}

struct Foreign : torch::autograd::Function<Foreign> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& a) {
    auto r = a.sigmoid();
    context->save_for_backward({r});
    return r;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradient) {
    const auto r = context->get_saved_variables()[0];
    return {gradient[0] * r * (1 - r)};
  }
};
at::Tensor foreign(const at::Tensor& a) { return Foreign::apply(a); }
/// Makes a graph of its own, and drops it.
at::Tensor scratch(const at::Tensor& a) {
  const at::AutoGradMode with_grad(true);
  return a.detach().requires_grad_().sin().exp().detach();
}

TORCH_LIBRARY(budget_test, m) {
  m.def("fragile(Tensor a) -> Tensor");
  m.impl("fragile", c10::DispatchKey::CPU, TORCH_FN(fragile));
  m.def("foreign(Tensor a) -> Tensor");
  m.impl("foreign", c10::DispatchKey::Autograd, TORCH_FN(foreign));
  m.def("scratch(Tensor a) -> Tensor");
  m.impl("scratch", c10::DispatchKey::CompositeExplicitAutograd, TORCH_FN(scratch));
}

at::Tensor call(const char* name, const at::Tensor& a) {
  return c10::Dispatcher::singleton()
      .findSchemaOrThrow(name, "")
      .typed<at::Tensor(const at::Tensor&)>()
      .call(a);
}

TEST_F(ActivationBudgetBackward, AnExceptionInAReplayPassesAndLeavesAllUsable) {
  const auto f = [&] {
    const auto h = call("budget_test::fragile", x.matmul(w).detach()).tanh();
    return (h * x.matmul(w)).sin().sum();
  };
  const auto expected = grad({f()}, {w})[0];
  at::Tensor loss;
  {
    ActivationBudget budget(KiB(0), {.pure_namespaces = {"budget_test"}});
    loss = f();
  }
  calls_left = 0;
  EXPECT_EQ(message_of([&] { grad({loss}, {w}, {}, true); }), "the op failed");
  EXPECT_TRUE(same_bytes(grad({loss}, {w}, {}, true)[0], expected));
  EXPECT_TRUE(same_bytes(grad({loss}, {w})[0], expected));
}

TEST_F(ActivationBudgetBackward, ForeignOpsArePinned) {
  for (const char* op : {"budget_test::foreign", "budget_test::scratch"}) {
    const auto f = [&] { return (call(op, x.matmul(w).tanh()) * w.slice(0, 0, 16)).tanh().sum(); };
    const auto expected = grad({f()}, {w})[0];
    const auto loss = without_memory(f);
    EXPECT_TRUE(same_bytes(grad({loss}, {w})[0], expected));
    EXPECT_EQ(stats->pinned_bytes, 16 * 64 * 4);
    EXPECT_GT(stats->replayed_ops, 0);
    at::Tensor trusted;
    {
      ActivationBudget budget(KiB(0), {.pure_namespaces = {"budget_test"}});
      stats = budget.stats();
      trusted = f();
    }
    EXPECT_TRUE(same_bytes(grad({trusted}, {w})[0], expected));
    EXPECT_EQ(stats->pinned_bytes, 0);
  }
}

}  // namespace
}  // namespace torchlore
