#pragma once

#include <c10/util/Exception.h>

#include <compare>
#include <concepts>
#include <cstdint>
#include <ostream>
#include <string>

namespace torchlore {

/// A number of bytes: what budgets are given in, so that a number cannot be taken for another unit.
///
/// ```cpp
/// torchlore::ActivationBudget budget(torchlore::GiB(1.5));
/// ```
class Bytes {
 public:
  /// None.
  constexpr Bytes() = default;
  /// As many; negative for a difference.
  constexpr explicit Bytes(int64_t count) : count_(count) {}

  /// The number.
  constexpr int64_t count() const { return count_; }

  /// By number.
  friend constexpr auto operator<=>(const Bytes&, const Bytes&) = default;
  /// The sum.
  friend constexpr Bytes operator+(Bytes a, Bytes b) { return Bytes(a.count_ + b.count_); }
  /// The difference.
  friend constexpr Bytes operator-(Bytes a, Bytes b) { return Bytes(a.count_ - b.count_); }

 private:
  int64_t count_ = 0;
};

/// A whole or a broken number.
template <typename T>
concept Number = std::integral<T> || std::floating_point<T>;

namespace detail {

template <Number T>
constexpr Bytes bytes_of(const char* unit, T count, double size) {
  const double bytes = static_cast<double>(count) * size;
  // Below 2^53 every number of bytes is a double.
  TORCH_CHECK_VALUE(bytes >= 0 && bytes <= 9007199254740992.0, unit,
                    " must be given a number from 0 to 8 PiB, but got ", +count);
  return Bytes(static_cast<int64_t>(bytes));
}

}  // namespace detail

/// So many times 2^10 bytes. @throws c10::ValueError for a negative number, or above 8 PiB.
constexpr Bytes KiB(Number auto count) { return detail::bytes_of("KiB", count, 1024.0); }
/// So many times 2^20 bytes. @throws c10::ValueError for a negative number, or above 8 PiB.
constexpr Bytes MiB(Number auto count) { return detail::bytes_of("MiB", count, 1048576.0); }
/// So many times 2^30 bytes. @throws c10::ValueError for a negative number, or above 8 PiB.
constexpr Bytes GiB(Number auto count) { return detail::bytes_of("GiB", count, 1073741824.0); }

/// In the largest unit that gives 1 or more, with up to three significant figures: "512 MiB", "1.5 GiB".
std::string to_string(Bytes bytes);
/// As `to_string`.
std::ostream& operator<<(std::ostream& out, Bytes bytes);

}  // namespace torchlore
