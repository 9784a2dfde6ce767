#include "torchlore/core/rng.hpp"

#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>

#include <mutex>

#include "torchlore/core/device.hpp"

namespace torchlore {
namespace {

at::Tensor state_of(at::Generator generator) {
  const std::lock_guard<std::mutex> lock(generator.mutex());
  return generator.get_state();
}

void set_state(at::Generator generator, const at::Tensor& state) {
  const std::lock_guard<std::mutex> lock(generator.mutex());
  generator.set_state(state);
}

bool is_bytes(const at::Tensor& state) {
  return state.defined() && state.is_cpu() && state.scalar_type() == at::kByte && state.dim() == 1;
}

std::optional<c10::Device> parse_device(const std::string& name) {
  try {
    return c10::Device(name);
  } catch (const c10::Error&) {
    return std::nullopt;
  }
}

/// The generator that a key names. Throws if there is none here, or if its states are of another
/// kind.
at::Generator checked_generator(const std::string& name, const at::Tensor& state) {
  const c10::Device device(name);
  TORCH_CHECK_VALUE(
      device.is_cpu() || (accelerator_available() && device.type() == default_device().type() &&
                          device.index() < device_count()),
      "the random state is of ", name, ", which this machine lacks");
  auto generator = at::globalContext().defaultGenerator(device);
  const auto expected = state_of(generator).numel();
  TORCH_CHECK_VALUE(state.numel() == expected, "the random state of ", name, " has ", state.numel(),
                    " bytes, but this LibTorch's generator has ", expected,
                    "; it was saved by another release");
  return generator;
}

}  // namespace

RngState RngState::capture() {
  RngState result;
  const auto add = [&](c10::Device device) {
    result.states_[device.str()] = state_of(at::globalContext().defaultGenerator(device));
  };
  add(c10::Device(c10::kCPU));
  for (int64_t i = 0; i < device_count(); ++i) {
    add({default_device().type(), static_cast<c10::DeviceIndex>(i)});
  }
  return result;
}

void RngState::restore() const {
  std::vector<std::pair<at::Generator, at::Tensor>> before;
  for (const auto& [name, state] : states_) {
    auto generator = checked_generator(name, state);
    before.emplace_back(generator, state_of(generator));
  }
  try {
    size_t next = 0;
    for (const auto& [name, state] : states_) set_state(before[next++].first, state);
  } catch (const std::exception&) {
    for (const auto& [generator, state] : before) set_state(generator, state);
    TORCH_CHECK_VALUE(false,
                      "the random state is not one that a generator can take; all generators "
                      "stay as they were");
  }
}

void RngState::put_back() const {
  for (const auto& [name, state] : states_) {
    set_state(at::globalContext().defaultGenerator(c10::Device(name)), state);
  }
}

void RngState::load_state_dict(const StateDict& state) {
  StateDict loaded;
  for (const auto& [name, tensor] : state) {
    TORCH_CHECK_VALUE(parse_device(name).has_value(), "the random state's key '", name,
                      "' names no device; expected 'cpu', 'cuda:0', …");
    TORCH_CHECK_VALUE(is_bytes(tensor), "the random state of ", name,
                      " must be a one-dimensional uint8 tensor on the CPU");
    loaded[name] = tensor.clone();
  }
  states_ = std::move(loaded);
}

RngScope::~RngScope() {
  try {
    // Also when memory has run out.
    state_.put_back();
  } catch (const std::exception& error) {
    TORCH_WARN("the random generators could not be restored: ", error.what());
  }
}

}  // namespace torchlore
