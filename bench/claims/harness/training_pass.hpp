#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <functional>
#include <mutex>
#include <vector>

#include "../../../tests/memory/budget_run.hpp"
#include "../models/workload.hpp"
#include "torchlore/memory/memory_meter.hpp"

namespace torchlore::claims {

/// Forward and backward of a workload, always from the same buffers and random numbers.
class TrainingPass {
 public:
  explicit TrainingPass(const models::Workload& workload)
      : parameters_(workload.model->parameters()), buffers_(workload.model->buffers()) {
    for (const auto& buffer : buffers_) before_.push_back(buffer.clone());
  }

  /// Not to be timed: gradients away, buffers and generator as at first.
  void prepare() {
    for (const auto& p : parameters_) p.mutable_grad() = at::Tensor();
    for (size_t i = 0; i < buffers_.size(); ++i) buffers_[i].copy_(before_[i]);
    auto generator = at::detail::getDefaultCPUGenerator();
    const std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_current_seed(7);
  }

  /// `prepare` and `forward_backward`; returns the peak of the bytes allocated in it.
  double peak(const std::function<void()>& forward_backward) {
    prepare();
    const MemoryMeter meter;
    forward_backward();
    return static_cast<double>(meter.peak().count());
  }

  /// What the last pass left: gradients, and buffers where they are asked for.
  std::vector<at::Tensor> result(bool with_buffers) const {
    std::vector<at::Tensor> tensors;
    for (const auto& p : parameters_) {
      tensors.push_back(p.grad().defined() ? p.grad().clone() : at::Tensor());
    }
    if (!with_buffers) return tensors;
    for (const auto& buffer : buffers_) tensors.push_back(buffer.clone());
    return tensors;
  }

  /// How many of the tensors differ in any bit.
  static int64_t differences(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
    int64_t count = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      const bool same = torchlore::testing::same_bytes(a[i], b[i]);
      count += same ? 0 : 1;
    }
    return count;
  }

 private:
  std::vector<at::Tensor> parameters_;
  std::vector<at::Tensor> buffers_;
  std::vector<at::Tensor> before_;
};

}  // namespace torchlore::claims
