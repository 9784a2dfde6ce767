#pragma once

#include <c10/util/Exception.h>

#include <exception>
#include <string>

namespace torchlore::memory {

/// Rethrows the error itself, with what there is to say of it as its context; an error whose type
/// has no room for that goes with a warning.
[[noreturn]] inline void rethrow_with(const std::exception_ptr& error, const std::string& text) {
  try {
    std::rethrow_exception(error);
  } catch (c10::Error& e) {
    e.add_context(text);
    throw;
  } catch (...) {
    TORCH_WARN(text);
    throw;
  }
}

}  // namespace torchlore::memory
