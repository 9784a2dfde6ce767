#pragma once

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <string>

namespace torchlore::testing {

/// Runs `f`, which must throw `E`, and returns its text without the backtrace.
template <typename E = c10::Error, typename F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const E& error) {
    return error.what_without_backtrace();
  } catch (const std::exception& error) {
    ADD_FAILURE() << "threw another type: " << error.what();
    return {};
  }
  ADD_FAILURE() << "did not throw";
  return {};
}

}  // namespace torchlore::testing
