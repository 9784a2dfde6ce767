#include "torchlore/precision/autocast.hpp"

#include <ATen/autocast_mode.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <vector>

namespace torchlore {
namespace {

namespace lt = at::autocast;

/// The serial numbers of this thread's open scopes, outermost first.
std::vector<uint64_t>& open_scopes() {
  thread_local std::vector<uint64_t> scopes;
  return scopes;
}

uint64_t next_serial() {
  static std::atomic<uint64_t> serial{0};
  return ++serial;
}

void check_device(c10::DeviceType device) {
  TORCH_CHECK_VALUE(lt::is_autocast_available(device), "LibTorch has no autocast for the device '",
                    c10::DeviceTypeName(device, /*lower_case=*/true),
                    "'; pass the device that the model runs on, such as at::kCPU or at::kCUDA");
}

void check_dtype(c10::DeviceType device, c10::ScalarType dtype) {
  // A backend of the user's own knows best which types it casts to.
  if (device == c10::DeviceType::PrivateUse1) return;
  TORCH_CHECK_VALUE(dtype == at::kBFloat16 || dtype == at::kHalf, "autocast on '",
                    c10::DeviceTypeName(device, /*lower_case=*/true),
                    "' casts to BFloat16 or Half, but dtype is ", dtype,
                    "; to compute without casts leave the scope out, or pass {.enabled = false}");
}

}  // namespace

Autocast::Autocast(c10::Device device, std::optional<c10::ScalarType> dtype,
                   AutocastOptions options)
    : device_(device.type()) {
  check_device(device_);
  previous_enabled_ = lt::is_autocast_enabled(device_);
  previous_dtype_ = lt::get_autocast_dtype(device_);
  previous_cache_ = lt::is_autocast_cache_enabled();
  if (dtype || options.enabled) check_dtype(device_, dtype.value_or(previous_dtype_));

  serial_ = next_serial();
  open_scopes().push_back(serial_);
  lt::increment_nesting();
  lt::set_autocast_enabled(device_, options.enabled);
  lt::set_autocast_dtype(device_, dtype.value_or(previous_dtype_));
  lt::set_autocast_cache_enabled(options.cache);
}

Autocast::~Autocast() {
  auto& scopes = open_scopes();
  const auto self = std::find(scopes.begin(), scopes.end(), serial_);
  if (self == scopes.end()) {
    TORCH_WARN(
        "an Autocast scope was destroyed on another thread than its own, or after the scope around "
        "it; autocast is left as it is. End scopes on their thread, innermost first");
    return;
  }
  if (self + 1 != scopes.end()) {
    TORCH_WARN(
        "an Autocast scope was destroyed before a scope inside it; both have ended. End scopes "
        "innermost first");
  }
  for (auto left = scopes.end() - self; left > 0; --left) {
    if (lt::decrement_nesting() == 0) lt::clear_cache();
  }
  scopes.erase(self, scopes.end());
  restore();
}

void Autocast::restore() const {
  lt::set_autocast_enabled(device_, previous_enabled_);
  lt::set_autocast_dtype(device_, previous_dtype_);
  lt::set_autocast_cache_enabled(previous_cache_);
}

}  // namespace torchlore
