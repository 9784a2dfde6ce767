#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>

#include <cstring>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "torchlore/memory/activation_budget.hpp"

/// A plain run, and the same run under a budget, compared bit by bit.
namespace torchlore::testing {

inline void seed(uint64_t value) {
  auto generator = at::detail::getDefaultCPUGenerator();
  const std::lock_guard<std::mutex> lock(generator.mutex());
  generator.set_current_seed(value);
}

/// Equal as bytes: a NaN equals itself, and 0 is not -0.
inline bool same_bytes(const at::Tensor& a, const at::Tensor& b) {
  if (a.defined() != b.defined()) return false;
  if (!a.defined()) return true;
  if (a.sizes() != b.sizes() || a.scalar_type() != b.scalar_type()) return false;
  const auto x = a.detach().contiguous();
  const auto y = b.detach().contiguous();
  return std::memcmp(x.const_data_ptr(), y.const_data_ptr(), x.nbytes()) == 0;
}

/// What a run leaves behind.
struct Outcome {
  std::vector<at::Tensor> tensors;  // the loss, gradients, buffers, and the next random numbers
  ActivationBudgetStats stats;
};

struct BudgetCase {
  std::vector<at::Tensor> parameters = {};
  std::function<at::Tensor()> loss = nullptr;
  std::vector<at::Tensor> buffers = {};
  /// The op whose replay may write other bytes without a change of any result.
  std::string may_mismatch = {};
};

/// Runs forward and backward; a negative budget stands for none.
inline Outcome run_once(const BudgetCase& test, int64_t budget, bool verify,
                        const std::vector<at::Tensor>& buffers_before) {
  for (const auto& parameter : test.parameters) parameter.mutable_grad() = at::Tensor();
  for (size_t i = 0; i < test.buffers.size(); ++i) test.buffers[i].copy_(buffers_before[i]);
  seed(5);
  Outcome outcome;
  {
    at::Tensor loss;
    std::shared_ptr<const ActivationBudgetStats> stats;
    if (budget < 0) {
      loss = test.loss();
    } else {
      ActivationBudget scope(Bytes(budget), {.verify = verify});
      stats = scope.stats();
      loss = test.loss();
    }
    outcome.tensors.push_back(loss.detach().clone());
    loss.backward();
    if (stats) outcome.stats = *stats;
  }
  for (const auto& parameter : test.parameters) {
    const auto& gradient = parameter.grad();
    outcome.tensors.push_back(gradient.defined() ? gradient.clone() : at::Tensor());
  }
  for (const auto& buffer : test.buffers) outcome.tensors.push_back(buffer.clone());
  outcome.tensors.push_back(at::rand({3}));
  return outcome;
}

}  // namespace torchlore::testing
