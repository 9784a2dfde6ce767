#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>

namespace torchlore {

/// The saved state of anything: names to tensors, in sorted order. A number is a 0-d tensor,
/// float64 or int64. Keys may be nested with '/': `"groups/0/lr"`.
using StateDict = std::map<std::string, at::Tensor>;

/// A number as the 0-d tensor a `StateDict` holds (float64).
at::Tensor state_value(double value);
/// A count as the 0-d tensor a `StateDict` holds (int64).
at::Tensor state_value(int64_t value);

/// Reads a number of any numeric dtype from a `StateDict`.
/// @throws c10::ValueError if the key is missing or its tensor does not hold exactly one element;
///         the text names the key and the keys that are there.
double state_double(const StateDict& state, const std::string& key);
/// Reads a count from a `StateDict`; throws as `state_double`.
int64_t state_int(const StateDict& state, const std::string& key);

/// A type with `state_dict()` and `load_state_dict(const StateDict&)`.
template <typename T>
concept Stateful = requires(T& t, const T& c, const StateDict& s) {
  StateDict(c.state_dict());
  t.load_state_dict(s);
};

}  // namespace torchlore
