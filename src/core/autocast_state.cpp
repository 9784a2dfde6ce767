#include "torchlore/core/autocast_state.hpp"

#include <ATen/autocast_mode.h>

namespace torchlore {

namespace lt = at::autocast;

AutocastState AutocastState::capture() {
  AutocastState state;
  static_assert(lt::_AUTOCAST_SUPPORTED_DEVICES.size() <= std::tuple_size_v<decltype(devices_)>);
  for (size_t i = 0; i < lt::_AUTOCAST_SUPPORTED_DEVICES.size(); ++i) {
    const auto device = lt::_AUTOCAST_SUPPORTED_DEVICES[i];
    state.devices_[i] = {lt::get_autocast_dtype(device), lt::is_autocast_enabled(device)};
  }
  state.cache_ = lt::is_autocast_cache_enabled();
  return state;
}

void AutocastState::set() const {
  for (size_t i = 0; i < lt::_AUTOCAST_SUPPORTED_DEVICES.size(); ++i) {
    const auto device = lt::_AUTOCAST_SUPPORTED_DEVICES[i];
    lt::set_autocast_enabled(device, devices_[i].enabled);
    lt::set_autocast_dtype(device, devices_[i].dtype);
  }
  lt::set_autocast_cache_enabled(cache_);
}

AutocastStateGuard::AutocastStateGuard(const AutocastState& state)
    : previous_(AutocastState::capture()) {
  lt::increment_nesting();
  state.set();
}

AutocastStateGuard::~AutocastStateGuard() {
  if (lt::decrement_nesting() == 0) lt::clear_cache();
  previous_.set();
}

}  // namespace torchlore
