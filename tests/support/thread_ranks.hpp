#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/minimum.h>

#include <barrier>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "torchlore/core/reducer.hpp"

namespace torchlore::testing {

/// Runs `body(reducer)` on as many threads as there are ranks, which reduce for real.
inline void run_ranks(int64_t count, const std::function<void(const Reducer&)>& body) {
  std::barrier<> barrier(static_cast<std::ptrdiff_t>(count));
  std::vector<at::Tensor> parts(static_cast<size_t>(count));
  const auto reduce = [&](int64_t rank, at::Tensor& tensor, ReduceOp op) {
    parts[static_cast<size_t>(rank)] = tensor.detach().clone();
    barrier.arrive_and_wait();
    auto result = parts[0].clone();
    for (size_t i = 1; i < parts.size(); ++i) {
      if (op == ReduceOp::sum) result += parts[i];
      if (op == ReduceOp::max) result = at::maximum(result, parts[i]);
      if (op == ReduceOp::min) result = at::minimum(result, parts[i]);
    }
    barrier.arrive_and_wait();
    tensor.copy_(result);
  };
  std::vector<std::thread> threads;
  for (int64_t rank = 0; rank < count; ++rank) {
    threads.emplace_back([&, rank] {
      body(Reducer(count, rank, [&, rank](at::Tensor& t, ReduceOp op) { reduce(rank, t, op); }));
    });
  }
  for (auto& thread : threads) thread.join();
}

}  // namespace torchlore::testing
