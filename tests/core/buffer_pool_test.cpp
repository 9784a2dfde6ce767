#include "../../src/core/buffer_pool.hpp"

#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include <memory>
#include <thread>
#include <vector>

#include "support/message.hpp"

namespace torchlore {
namespace {

using detail::BufferPool;

TEST(BufferPool, LendsTheSameMemoryAgain) {
  BufferPool pool(1 << 20);
  void* first = nullptr;
  {
    const auto t = pool.empty({10, 20});
    EXPECT_EQ(t.sizes(), at::IntArrayRef({10, 20}));
    EXPECT_EQ(t.scalar_type(), at::kFloat);
    EXPECT_TRUE(t.is_contiguous());
    EXPECT_EQ(pool.kept_bytes(), 0);
    first = t.data_ptr();
  }
  EXPECT_EQ(pool.kept_bytes(), 800);
  EXPECT_EQ(pool.empty({200}).data_ptr(), first);
  EXPECT_EQ(pool.empty({150}).data_ptr(), first);  // a little smaller fits
  EXPECT_NE(pool.empty({20}).data_ptr(), first);   // would waste most of it
  EXPECT_NE(pool.empty({201}).data_ptr(), first);
}

TEST(BufferPool, LendsDifferentMemoryAtTheSameTime) {
  BufferPool pool(1 << 20);
  auto a = pool.empty({100}), b = pool.empty({100});
  a.fill_(1);
  b.fill_(2);
  EXPECT_EQ(a.sum().item<float>(), 100);
}

TEST(BufferPool, KeepsNoMoreThanItsLimit) {
  BufferPool pool(1000);
  { const auto t = pool.empty({300}); }
  EXPECT_EQ(pool.kept_bytes(), 0);
  void* newer = nullptr;
  {
    const auto older = pool.empty({150});
    const auto t = pool.empty({151});
    newer = t.data_ptr();
  }  // `t` goes first, then `older`: the longest unused makes room
  EXPECT_EQ(pool.kept_bytes(), 600);
  EXPECT_NE(pool.empty({151}).data_ptr(), newer);
}

TEST(BufferPool, MemoryMayOutliveIt) {
  auto pool = std::make_unique<BufferPool>(1 << 20);
  auto t = pool->empty({1000});
  { const auto kept = pool->empty({10}); }
  pool.reset();
  t.fill_(3);
  EXPECT_EQ(t.sum().item<float>(), 3000);
}

TEST(BufferPool, LendsNothing) {
  BufferPool pool(0);
  EXPECT_EQ(pool.empty({0}).numel(), 0);
  EXPECT_EQ(pool.empty({3, 0}).sizes(), at::IntArrayRef({3, 0}));
  EXPECT_EQ(pool.kept_bytes(), 0);
}

TEST(BufferPool, ServesManyThreads) {
  BufferPool pool(10'000);
  std::vector<std::thread> threads;
  for (int id = 0; id < 4; ++id) {
    threads.emplace_back([&pool, id] {
      for (int64_t i = 0; i < 200; ++i) {
        auto t = pool.empty({1 + i % 50});
        t.fill_(id);
        EXPECT_EQ(t.min().item<float>(), static_cast<float>(id));
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_LE(pool.kept_bytes(), 10'000);
}

TEST(BufferPool, RefusesANegativeLimit) {
  EXPECT_EQ(testing::message_of<c10::ValueError>([] { BufferPool pool(-1); }),
            "max_kept_bytes must be 0 or more, but is -1");
}

}  // namespace
}  // namespace torchlore
