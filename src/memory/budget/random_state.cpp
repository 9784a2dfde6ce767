#include "random_state.hpp"

#include <ATen/Context.h>

#include <mutex>

namespace torchlore::budget {
namespace {

at::Tensor state_of(at::Generator generator) {
  const std::lock_guard<std::mutex> lock(generator.mutex());
  return generator.get_state();
}

}  // namespace

void RandomState::add(c10::Device device) {
  auto generator = at::globalContext().defaultGenerator(device);
  for (const auto& entry : states_) {
    if (entry.first == generator) return;
  }
  states_.emplace_back(generator, state_of(generator));
}

void RandomState::restore() const {
  for (const auto& [generator, state] : states_) {
    auto writable = generator;
    const std::lock_guard<std::mutex> lock(writable.mutex());
    writable.set_state(state);
  }
}

RandomState RandomState::now() const {
  RandomState result;
  for (const auto& entry : states_) {
    result.states_.emplace_back(entry.first, state_of(entry.first));
  }
  return result;
}

}  // namespace torchlore::budget
