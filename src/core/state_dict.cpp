#include "torchlore/core/state_dict.hpp"

#include <ATen/ops/scalar_tensor.h>

#include "state_parts.hpp"

namespace torchlore {
namespace {

const at::Tensor& single_value(const StateDict& state, const std::string& key) {
  const auto found = state.find(key);
  if (found == state.end()) {
    std::string keys;
    for (const auto& [name, tensor] : state) keys += (keys.empty() ? "" : ", ") + name;
    TORCH_CHECK_VALUE(false, "the saved state has no '", key, "'; it has: ", keys);
  }
  TORCH_CHECK_VALUE(found->second.numel() == 1, "'", key,
                    "' of the saved state must be one number, but has shape ",
                    found->second.sizes());
  return found->second;
}

}  // namespace

at::Tensor state_value(double value) { return at::scalar_tensor(value, at::kDouble); }

at::Tensor state_value(int64_t value) { return at::scalar_tensor(value, at::kLong); }

double state_double(const StateDict& state, const std::string& key) {
  return single_value(state, key).item().toDouble();
}

int64_t state_int(const StateDict& state, const std::string& key) {
  return single_value(state, key).item().toLong();
}

namespace detail {

StateDict state_below(const StateDict& state, const std::string& prefix) {
  StateDict result;
  for (auto it = state.lower_bound(prefix); it != state.end() && it->first.starts_with(prefix);
       ++it) {
    result.emplace(it->first.substr(prefix.size()), it->second);
  }
  return result;
}

void add_below(StateDict& state, const std::string& prefix, const StateDict& part) {
  for (const auto& [key, value] : part) state[prefix + key] = value;
}

}  // namespace detail

}  // namespace torchlore
