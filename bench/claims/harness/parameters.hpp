#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/randn.h>
#include <fmt/format.h>

#include <cstdint>
#include <string>
#include <vector>

namespace torchlore::claims {

/// Parameters of equal size, each with a gradient: float32 on the CPU.
struct Sizes {
  int64_t tensors = 0;
  int64_t elements = 0;  ///< of each

  std::string text() const {
    return fmt::format("{} float32 tensors of {} elements", tensors, elements);
  }
  std::vector<std::string> arguments() const {
    return {"--tensors", std::to_string(tensors), "--elements", std::to_string(elements)};
  }
  std::vector<at::Tensor> parameters() const {
    std::vector<at::Tensor> all;
    for (int64_t i = 0; i < tensors; ++i) {
      all.push_back(at::randn({elements}).set_requires_grad(true));
      all.back().mutable_grad() = at::randn({elements});
    }
    return all;
  }
};

}  // namespace torchlore::claims
