// The first modes of a process are made by several threads at once, while others run ops. Alone in
// its program, since there is only one first time.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "support/handlers.hpp"
#include "torchlore/intercept/op_mode.hpp"

namespace torchlore {
namespace {

using testing::CountMatmuls;
using testing::multiply;
using testing::Trace;

TEST(OpModeFirstUse, IsSafeOnManyThreads) {
  multiply();
  std::atomic<bool> start = false;
  std::atomic<bool> done = false;
  std::vector<std::thread> modes;
  std::vector<std::thread> bystanders;
  std::vector<CountMatmuls> handlers(4);
  for (size_t i = 0; i < 4; ++i) {
    modes.emplace_back([&, i] {
      while (!start) std::this_thread::yield();
      Trace boxed;
      const OpMode typed_mode(handlers[i]);
      const OpMode boxed_mode(boxed);
      EXPECT_EQ(multiply().item<float>(), 2);
    });
    bystanders.emplace_back([&] {
      while (!done) EXPECT_EQ(multiply().item<float>(), 2);
    });
  }
  start = true;
  for (auto& thread : modes) thread.join();
  done = true;
  for (auto& thread : bystanders) thread.join();
  for (const auto& handler : handlers) EXPECT_EQ(handler.count, 1);
}

}  // namespace
}  // namespace torchlore
