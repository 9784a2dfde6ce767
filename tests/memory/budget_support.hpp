#pragma once

#include <gtest/gtest.h>

#include <algorithm>

#include "budget_run.hpp"

namespace torchlore::testing {

inline void expect_same(const Outcome& actual, const Outcome& expected, const std::string& what) {
  ASSERT_EQ(actual.tensors.size(), expected.tensors.size());
  for (size_t i = 0; i < expected.tensors.size(); ++i) {
    EXPECT_TRUE(same_bytes(actual.tensors[i], expected.tensors[i])) << what << ", tensor " << i;
  }
}

/// Expects the outcome of a plain run at 100 % (with every replay verified), 50, 10 and 0 % of what
/// the plain run keeps, and the pool within the budget or the floor. Returns what 0 % did.
inline ActivationBudgetStats expect_exact(const BudgetCase& test) {
  std::vector<at::Tensor> before;
  for (const auto& buffer : test.buffers) before.push_back(buffer.clone());
  const auto plain = run_once(test, -1, false, before);
  const auto full = run_once(test, int64_t{1} << 40, true, before);
  expect_same(full, plain, "100 %");
  EXPECT_GT(full.stats.verified, 0);
  EXPECT_EQ(full.stats.evictions, 0);
  for (const auto& op : full.stats.mismatched_ops) EXPECT_EQ(op, test.may_mismatch);
  ActivationBudgetStats last;
  for (const double share : {0.5, 0.1, 0.0}) {
    const auto budget =
        static_cast<int64_t>(static_cast<double>(full.stats.peak_pool_bytes) * share);
    const auto run = run_once(test, budget, false, before);
    expect_same(run, plain, std::to_string(share));
    EXPECT_LE(run.stats.peak_pool_bytes, std::max(budget, run.stats.floor_bytes)) << share;
    last = run.stats;
  }
  return last;
}

}  // namespace torchlore::testing
