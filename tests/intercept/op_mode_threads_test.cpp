#include <ATen/Parallel.h>
#include <ATen/ThreadLocalState.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "support/handlers.hpp"
#include "support/message.hpp"
#include "torchlore/intercept/op_mode.hpp"

namespace torchlore {
namespace {

using testing::CountMatmuls;
using testing::Doubling;
using testing::multiply;
using testing::ObserveMatmuls;
using testing::Trace;

void on_a_thread(const std::function<void()>& f) { std::thread(f).join(); }

/// Runs `f` by way of LibTorch's own pools, and waits for it.
template <typename Launch>
float launched(const Launch& launch, const std::function<at::Tensor()>& f) {
  std::promise<float> result;
  launch([&] { result.set_value(f().template item<float>()); });
  return result.get_future().get();
}

float by_launch(const std::function<at::Tensor()>& f) {
  return launched([](auto g) { at::launch(std::move(g)); }, f);
}

float by_intraop_launch(const std::function<at::Tensor()>& f) {
  return launched([](auto g) { at::intraop_launch(std::move(g)); }, f);
}

TEST(OpModeThreads, AModeBelongsToItsThread) {
  CountMatmuls handler;
  const OpMode mode(handler);
  on_a_thread([] { multiply(); });
  EXPECT_EQ(handler.count, 0);
}

TEST(OpModeThreads, AStateCarriesModesToOthers) {
  CountMatmuls handler;
  Doubling doubling;
  const OpMode first(handler);
  const OpMode second(doubling);
  const auto modes = OpModeState::capture();
  on_a_thread([&] {
    EXPECT_EQ(multiply().item<float>(), 2);
    {
      const OpModeGuard guard(modes);
      EXPECT_EQ(multiply().item<float>(), 4);
    }
    EXPECT_EQ(multiply().item<float>(), 2);
    EXPECT_TRUE(OpModeState::capture().empty());
  });
  EXPECT_EQ(handler.count, 1);
  EXPECT_EQ(multiply().item<float>(), 4);
}

TEST(OpModeThreads, AStateServesManyThreadsAtOnce) {
  CountMatmuls handler;
  const OpMode mode(handler);
  const auto modes = OpModeState::capture();
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int repeat = 0; repeat < 50; ++repeat) {
        const OpModeGuard guard(modes);
        multiply();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(handler.count, 200);
}

TEST(OpModeThreads, EachThreadHasModesOfItsOwn) {
  std::vector<std::thread> threads;
  std::vector<CountMatmuls> handlers(4);
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&handlers, i] {
      for (int repeat = 0; repeat < 50; ++repeat) {
        Trace boxed;
        Doubling doubling;
        const OpMode first(handlers[static_cast<size_t>(i)]);
        const OpMode second(boxed);
        const OpMode third(doubling);
        for (int calls = 0; calls <= i; ++calls) EXPECT_EQ(multiply().item<float>(), 4);
        EXPECT_EQ(std::count(boxed.names.begin(), boxed.names.end(), "aten::addmm"), i + 1);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  for (int i = 0; i < 4; ++i) EXPECT_EQ(handlers[static_cast<size_t>(i)].count, 50 * (i + 1));
}

// LibTorch's pools and ThreadLocalState hand on the dispatch keys of a mode, but cannot know the mode.

TEST(OpModeThreads, LibTorchsPoolsRunOpsPlainlyUnlessGivenTheModes) {
  Doubling typed;
  Trace boxed;
  const OpMode first(typed);
  const OpMode second(boxed);
  const auto modes = OpModeState::capture();
  const auto in_modes = [&] {
    const OpModeGuard guard(modes);
    return multiply();
  };
  boxed.names.clear();
  EXPECT_EQ(by_launch(multiply), 2);
  EXPECT_TRUE(boxed.names.empty());
  EXPECT_EQ(by_launch(in_modes), 4);
  // With OpenMP this one runs on the caller's thread.
  EXPECT_EQ(by_intraop_launch(in_modes), 4);
}

TEST(OpModeThreads, SoDoesAThreadLocalStateOfAnotherThread) {
  Doubling typed;
  Trace boxed;
  const OpMode first(typed);
  const OpMode second(boxed);
  const auto modes = OpModeState::capture();
  const at::ThreadLocalState state;
  boxed.names.clear();
  on_a_thread([&] {
    const at::ThreadLocalStateGuard libtorch(state);
    EXPECT_EQ(multiply().item<float>(), 2);
    EXPECT_TRUE(boxed.names.empty());
    {
      const OpModeGuard guard(modes);
      EXPECT_EQ(multiply().item<float>(), 4);
    }
    EXPECT_EQ(multiply().item<float>(), 2);
  });
}

TEST(OpModeThreads, AThreadLocalStateFromOutsideHidesTheModes) {
  CountMatmuls handler;
  const at::ThreadLocalState outside;
  const OpMode mode(handler);
  {
    const at::ThreadLocalStateGuard guard(outside);
    multiply();
    EXPECT_EQ(handler.count, 0);
    CountMatmuls inside;
    {
      const OpMode again(inside);  // its own mode works, and shows the ones around it
      multiply();
    }
    EXPECT_EQ(inside.count, 1);
  }
  const int64_t before = handler.count;
  multiply();
  EXPECT_EQ(handler.count, before + 1);
}

TEST(OpModeThreads, InParallelForOnlyTheCallersChunksAreSeen) {
  CountMatmuls handler;
  const auto caller = std::this_thread::get_id();
  std::atomic<int64_t> by_caller = 0;
  {
    const OpMode mode(handler);
    at::parallel_for(0, 64, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        EXPECT_EQ(multiply().item<float>(), 2);
        if (std::this_thread::get_id() == caller) ++by_caller;
      }
    });
  }
  EXPECT_EQ(handler.count, by_caller);
}

/// A handler whose op works in parallel.
struct ParallelHandler : CountMatmuls {
  at::Tensor addmm(const at::Tensor& bias, const at::Tensor& a, const at::Tensor& b,
                   const at::Scalar& beta, const at::Scalar& alpha) override {
    at::parallel_for(0, 8, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) multiply();
    });
    return CountMatmuls::addmm(bias, a, b, beta, alpha);
  }
};

TEST(OpModeThreads, AHandlerMayWorkInParallel) {
  ParallelHandler handler;
  const OpMode mode(handler);
  multiply();
  EXPECT_EQ(handler.count, 1);
}

// --- Backward ----------------------------------------------------------------------------------------

struct CountMm : OpHandler {
  at::Tensor mm(const at::Tensor& a, const at::Tensor& b) override {
    ++count;
    return OpHandler::mm(a, b);
  }
  std::atomic<int64_t> count = 0;
};

TEST(OpModeThreads, BackwardIsSeenByTheModesOfTheThreadThatCallsIt) {
  CountMm handler;
  const auto x = at::randn({2, 2}), w = at::randn({2, 2}).requires_grad_(true);
  at::Tensor loss;
  {
    const OpMode mode(handler);
    loss = at::mm(x, w).sum();
    EXPECT_EQ(handler.count, 1);
    const auto gradient = [&] { return torch::autograd::grad({loss}, {w}, {}, true)[0]; };
    gradient();
    EXPECT_EQ(handler.count, 2);
    on_a_thread([&] { gradient(); });
    EXPECT_EQ(handler.count, 2);
    const auto modes = OpModeState::capture();
    on_a_thread([&] {
      const OpModeGuard guard(modes);
      gradient();
    });
    EXPECT_EQ(handler.count, 3);
  }
  loss.backward();
  EXPECT_EQ(handler.count, 3);
}

TEST(OpModeThreads, BackwardOfAGraphMadeInAModeWorksElsewhere) {
  auto handler = std::make_shared<Doubling>();
  const auto x = at::ones({1, 2}), w = at::ones({2, 1}).requires_grad_(true);
  at::Tensor loss;
  {
    const OpMode mode(std::move(handler));
    loss = at::addmm(at::zeros(1), x, w).sum();
  }
  on_a_thread([&] { loss.backward(); });
  EXPECT_EQ(w.grad().sum().item<float>(), 4);
}

// --- Ends --------------------------------------------------------------------------------------------

/// Lets two threads take turns.
class Turns {
 public:
  void wait_for(int turn) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return turn_ >= turn; });
  }
  void next() {
    const std::lock_guard lock(mutex_);
    ++turn_;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int turn_ = 0;
};

TEST(OpModeThreads, AModeThatEndsMeanwhileIsOverForAGuardUnlessItOwnsItsHandler) {
  const auto owned = std::make_shared<CountMatmuls>();
  CountMatmuls lent;
  auto outer = std::make_unique<OpMode>(owned);
  auto inner = std::make_unique<OpMode>(lent);
  const auto modes = OpModeState::capture();
  Turns turns;
  std::thread worker([&] {
    const OpModeGuard guard(modes);
    multiply();
    turns.next();
    turns.wait_for(2);
    multiply();
  });
  turns.wait_for(1);
  EXPECT_EQ(owned->count, 1);
  EXPECT_EQ(lent.count, 1);
  inner.reset();
  outer.reset();
  turns.next();
  worker.join();
  EXPECT_EQ(owned->count, 2);
  EXPECT_EQ(lent.count, 1);
}

}  // namespace
}  // namespace torchlore
