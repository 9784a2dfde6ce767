#pragma once

#include <fmt/format.h>

#include <cmath>
#include <string>
#include <string_view>

/// The little JSON that claims write.
namespace torchlore::claims {

inline std::string json_string(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    } else {
      out += c;
    }
  }
  return out + '"';
}

/// Four digits; null for what was not measured.
inline std::string json_number(double value) {
  return std::isfinite(value) ? fmt::format("{:.4g}", value) : "null";
}

}  // namespace torchlore::claims
