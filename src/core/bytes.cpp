#include "torchlore/core/bytes.hpp"

#include <array>
#include <cmath>
#include <cstdio>

namespace torchlore {

std::string to_string(Bytes bytes) {
  constexpr std::array<const char*, 5> kUnits{"bytes", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes.count());
  size_t unit = 0;
  // What would be written as 1024 of a unit is 1 of the next.
  for (; unit + 1 < kUnits.size() && std::abs(value) >= (unit == 0 ? 1024 : 1023.5); ++unit) {
    value /= 1024;
  }
  const double size = std::abs(value);
  const int decimals = unit == 0 || size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2;
  std::array<char, 48> text{};
  std::snprintf(text.data(), text.size(), "%.*f", decimals, value);
  std::string digits(text.data());
  if (decimals > 0) {  // "1.50" is "1.5", "2.00" is "2"
    digits.erase(digits.find_last_not_of('0') + 1);
    if (digits.back() == '.') digits.pop_back();
  }
  return digits + ' ' + kUnits[unit];
}

std::ostream& operator<<(std::ostream& out, Bytes bytes) { return out << to_string(bytes); }

}  // namespace torchlore
