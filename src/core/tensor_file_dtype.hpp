#pragma once

#include <c10/core/ScalarType.h>

#include <array>
#include <string_view>

namespace torchlore::detail {

struct FormatDtype {
  std::string_view name;
  uint64_t bits;         ///< per element
  at::ScalarType dtype;  ///< Undefined where LibTorch has none
};

/// All dtypes of the format in its own order, in which the Python package sorts what it writes
/// (the last comes first, so that wide elements are aligned without padding).
inline constexpr std::array<FormatDtype, 22> kFormatDtypes{{
    {"BOOL", 8, at::kBool},
    {"F4", 4, at::ScalarType::Float4_e2m1fn_x2},
    {"F6_E2M3", 6, at::ScalarType::Undefined},
    {"F6_E3M2", 6, at::ScalarType::Undefined},
    {"U8", 8, at::kByte},
    {"I8", 8, at::kChar},
    {"F8_E5M2", 8, at::kFloat8_e5m2},
    {"F8_E4M3", 8, at::kFloat8_e4m3fn},
    {"F8_E8M0", 8, at::ScalarType::Float8_e8m0fnu},
    {"F8_E4M3FNUZ", 8, at::kFloat8_e4m3fnuz},
    {"F8_E5M2FNUZ", 8, at::kFloat8_e5m2fnuz},
    {"I16", 16, at::kShort},
    {"U16", 16, at::kUInt16},
    {"F16", 16, at::kHalf},
    {"BF16", 16, at::kBFloat16},
    {"I32", 32, at::kInt},
    {"U32", 32, at::kUInt32},
    {"F32", 32, at::kFloat},
    {"C64", 64, at::kComplexFloat},
    {"F64", 64, at::kDouble},
    {"I64", 64, at::kLong},
    {"U64", 64, at::kUInt64},
}};

/// nullptr if the format has no such dtype.
inline const FormatDtype* find_dtype(std::string_view name) {
  for (const auto& entry : kFormatDtypes) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

/// nullptr if the format has no such dtype.
inline const FormatDtype* find_dtype(at::ScalarType dtype) {
  for (const auto& entry : kFormatDtypes) {
    if (entry.dtype == dtype && dtype != at::ScalarType::Undefined) return &entry;
  }
  return nullptr;
}

/// LibTorch counts the pairs that share a byte, the format counts the single elements.
inline constexpr at::ScalarType kPairDtype = at::ScalarType::Float4_e2m1fn_x2;

}  // namespace torchlore::detail
