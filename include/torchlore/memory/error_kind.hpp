#pragma once

#include <cstdint>
#include <exception>

namespace torchlore {

/// What an error says about trying again.
enum class ErrorKind : uint8_t {
  permanent,      ///< it would come again, or the device or process is no longer sound
  out_of_memory,  ///< memory may be free later, or enough for a smaller batch
  time_out        ///< another rank or the network did not answer
};

/// The kind's name, as written in code.
constexpr const char* to_string(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::permanent:
      return "permanent";
    case ErrorKind::out_of_memory:
      return "out_of_memory";
    case ErrorKind::time_out:
      return "time_out";
  }
  return "?";
}

/// Sorts an error by its type, and where LibTorch throws a plain `c10::Error`, by its text. The first
/// row that fits decides:
///
/// | kind | what |
/// |---|---|
/// | permanent | c10::ValueError, IndexError, TypeError, NotImplementedError and the other classes that say the call was wrong |
/// | permanent | device errors after which the process's device is lost: asserts, illegal or misaligned access, failed launches, ECC |
/// | out_of_memory | c10::OutOfMemoryError, std::bad_alloc, ENOMEM; texts of the CPU's allocator and of out-of-memory in CUDA, cuBLAS, cuDNN, oneDNN, MPS and their likes |
/// | time_out | c10::DistNetworkError and its children; texts of time-outs and lost connections of NCCL, Gloo and the stores |
/// | permanent | everything else |
///
/// Pass a function of your own to `RetryOptions::classify` for more, and call this one for the rest.
/// @note Reads the text without its backtrace; O(text).
ErrorKind classify_error(const std::exception& error);

}  // namespace torchlore
