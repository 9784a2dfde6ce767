#include "torchlore/privacy/robust_aggregation.hpp"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/stack.h>

#include "torchlore/core/error.hpp"

namespace torchlore {
namespace {

/// Each tensor of all clients in one, [clients, …], sorted over the clients.
StateDict sorted(const std::vector<StateDict>& updates) {
  TORCH_CHECK_VALUE(!updates.empty(), "there are no updates to aggregate");
  StateDict result;
  for (const auto& [name, first] : updates.front()) {
    TORCH_CHECK_TYPE(first.is_floating_point(), "updates are floating tensors, but \"", name,
                     "\" is ", first.scalar_type());
    std::vector<at::Tensor> all;
    for (size_t i = 0; i < updates.size(); ++i) {
      const auto found = updates[i].find(name);
      TORCH_CHECK_VALUE(found != updates[i].end() && updates[i].size() == updates.front().size(),
                        "update ", i, " does not have the tensors of update 0, such as \"", name,
                        "\"");
      const auto& tensor = found->second;
      TORCH_CHECK_VALUE(tensor.sizes() == first.sizes(), "\"", name, "\" of update ", i,
                        " has the shape ", tensor.sizes(), ", and that of update 0 has ",
                        first.sizes());
      TORCH_CHECK_VALUE(at::isfinite(tensor).all().item<bool>(), "\"", name, "\" of update ", i,
                        " holds a value that is not finite");
      all.push_back(tensor.detach().to(first.options()));
    }
    result[name] = std::get<0>(at::stack(all).sort(0));
  }
  return result;
}

}  // namespace

StateDict coordinate_median(const std::vector<StateDict>& updates) {
  const auto n = static_cast<int64_t>(updates.size());
  return trimmed_mean(updates, (n - 1) / 2);
}

StateDict trimmed_mean(const std::vector<StateDict>& updates, int64_t trim) {
  const at::NoGradGuard no_grad;
  const auto n = static_cast<int64_t>(updates.size());
  auto result = sorted(updates);
  TORCH_CHECK_VALUE(trim >= 0 && 2 * trim < n, "trim must be 0 or more and less than half of the ",
                    n, " updates, but is ", trim);
  for (auto& [name, tensor] : result) {
    const auto dtype = tensor.scalar_type();
    tensor = tensor.narrow(0, trim, n - 2 * trim).mean(0, false, at::kDouble).to(dtype);
  }
  return result;
}

}  // namespace torchlore
