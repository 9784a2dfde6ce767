#include "torchlore/memory/error_kind.hpp"

#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <new>
#include <string>
#include <string_view>
#include <system_error>

namespace torchlore {
namespace {

using namespace std::string_view_literals;

/// cudaErrorMemoryAllocation and its HIP and XPU likes; the one device error that is not sticky.
constexpr int32_t kDeviceOutOfMemory = 2;

// All lower case: texts are compared so.

/// After these, every later call on the device fails too.
constexpr std::array kLostDevice{
    "device-side assert"sv,        "illegal memory access"sv,  "illegal address"sv,
    "misaligned address"sv,        "illegal instruction"sv,    "invalid program counter"sv,
    "hardware stack error"sv,      "invalid device context"sv, "unspecified launch failure"sv,
    "uncorrectable ecc"sv,         "launch timed out"sv,       "device is lost"sv,
    "memory access fault by gpu"sv};

constexpr std::array kOutOfMemory{"defaultcpuallocator: can't allocate memory"sv,
                                  "defaultcpuallocator: not enough memory"sv,
                                  "out of memory"sv,
                                  "out_of_memory"sv,
                                  "cannot allocate memory"sv,
                                  "status_alloc_failed"sv,
                                  "could not allocate memory"sv,
                                  "not enough memory"sv,
                                  "std::bad_alloc"sv};

/// Whole texts of oneDNN's own errors, which carry their status where only its headers can see it. What
/// it cannot do at all it says of "a primitive descriptor"; creating and running fail for want of memory.
constexpr std::array kOneDnnOutOfMemory{
    "could not create a primitive"sv, "could not execute a primitive"sv,
    "could not create a memory object"sv, "could not create a memory"sv};

constexpr std::array kTimeOut{"watchdog caught collective operation timeout"sv,
                              "before timing out"sv,
                              "timed out waiting"sv,
                              "timed out in monitoredbarrier"sv,
                              "operation timed out"sv,
                              "connection timed out"sv,
                              "wait timeout after"sv,
                              "socket timeout"sv,
                              "connect timeout"sv,
                              "read timeout"sv,
                              "application timeout caused pair closure"sv,
                              "connection closed by peer"sv,
                              "connection reset by peer"sv,
                              "connection refused"sv,
                              "socket closed"sv,
                              "broken pipe"sv,
                              "ncclremoteerror"sv,
                              "remote process exited or there was a network error"sv};

template <size_t n>
bool has_any(const std::string& text, const std::array<std::string_view, n>& phrases) {
  return std::any_of(phrases.begin(), phrases.end(), [&](std::string_view phrase) {
    return text.find(phrase) != std::string::npos;
  });
}

std::string lower_case(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

std::string text_of(const std::exception& error) {
  const auto* ours = dynamic_cast<const c10::Error*>(&error);
  return lower_case(ours != nullptr ? ours->what_without_backtrace() : error.what());
}

template <typename... Types>
bool is_one_of(const std::exception& error) {
  return ((dynamic_cast<const Types*>(&error) != nullptr) || ...);
}

bool says_call_was_wrong(const std::exception& error) {
  return is_one_of<c10::ValueError, c10::IndexError, c10::TypeError, c10::NotImplementedError,
                   c10::BufferError, c10::EnforceFiniteError, c10::LinAlgError, c10::SyntaxError>(
      error);
}

ErrorKind kind_of_device_error(int32_t code) {
  return code == kDeviceOutOfMemory ? ErrorKind::out_of_memory : ErrorKind::permanent;
}

ErrorKind kind_of_system_error(const std::system_error& error) {
  const auto& code = error.code();
  // EAGAIN is what a thread that cannot have a stack gets.
  if (code == std::errc::not_enough_memory || code == std::errc::resource_unavailable_try_again) {
    return ErrorKind::out_of_memory;
  }
  const bool network = code == std::errc::timed_out || code == std::errc::connection_reset ||
                       code == std::errc::connection_refused || code == std::errc::broken_pipe;
  return network ? ErrorKind::time_out : ErrorKind::permanent;
}

}  // namespace

ErrorKind classify_error(const std::exception& error) {
  if (says_call_was_wrong(error)) return ErrorKind::permanent;
  const auto text = text_of(error);
  // First: a collective that failed because a device was lost says both.
  if (has_any(text, kLostDevice)) return ErrorKind::permanent;
  if (is_one_of<c10::OutOfMemoryError, std::bad_alloc>(error)) return ErrorKind::out_of_memory;
  if (const auto* device = dynamic_cast<const c10::AcceleratorError*>(&error)) {
    return kind_of_device_error(device->get_error_code());
  }
  if (const auto* system = dynamic_cast<const std::system_error*>(&error)) {
    return kind_of_system_error(*system);
  }
  const bool one_dnn = std::find(kOneDnnOutOfMemory.begin(), kOneDnnOutOfMemory.end(), text) !=
                       kOneDnnOutOfMemory.end();
  if (one_dnn || has_any(text, kOutOfMemory)) return ErrorKind::out_of_memory;
  if (is_one_of<c10::DistNetworkError>(error) || has_any(text, kTimeOut)) {
    return ErrorKind::time_out;
  }
  return ErrorKind::permanent;
}

}  // namespace torchlore
