#pragma once

#include <ATen/Context.h>
#include <ATen/ops/multinomial.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/tensor.h>

#include <string>

#include "run.hpp"

namespace text {

/// Text that the model writes after the beginning of the first held-out file.
inline std::string sample(const Run& run, GPT& model) {
  const at::NoGradGuard no_grad;
  const size_t length = run.settings.quick ? 40 : 400;
  std::string bytes = run.held_out().substr(0, 32);
  torch::manual_seed(static_cast<uint64_t>(run.settings.seed));
  while (bytes.size() < length) {
    const auto seen = std::min(bytes.size(), static_cast<size_t>(run.settings.context));
    std::vector<int64_t> ids;
    for (auto i = bytes.size() - seen; i < bytes.size(); ++i) {
      ids.push_back(static_cast<unsigned char>(bytes[i]));
    }
    const auto input = at::tensor(ids, at::kLong).unsqueeze(0).to(run.device());
    const auto logits = model(input)[0][-1] / 0.7;
    bytes.push_back(static_cast<char>(at::multinomial(at::softmax(logits, 0), 1).item<int64_t>()));
  }
  return bytes;
}

}  // namespace text
