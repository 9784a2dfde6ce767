#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

/// Sets of keys (or blocks) as ascending, disjoint ranges that do not touch.
namespace torchlore::detail {

/// The numbers [begin, end).
struct Span {
  int64_t begin = 0;
  int64_t end = 0;

  int64_t size() const { return std::max<int64_t>(0, end - begin); }
  bool empty() const { return end <= begin; }
  bool contains(int64_t number) const { return begin <= number && number < end; }
  bool operator==(const Span&) const = default;
};

/// What two spans share; empty if nothing.
inline Span overlap(Span a, Span b) { return {std::max(a.begin, b.begin), std::min(a.end, b.end)}; }

using Ranges = std::vector<Span>;

/// Adds a span that begins at or after the last one's begin; joins it to that one where they meet.
inline void append(Ranges& ranges, Span span) {
  if (span.empty()) return;
  if (!ranges.empty() && span.begin <= ranges.back().end) {
    ranges.back().end = std::max(ranges.back().end, span.end);
  } else {
    ranges.push_back(span);
  }
}

/// Brings spans of any order into the form of this file.
void normalise(Ranges& spans);

/// What both hold.
Ranges intersection(const Ranges& a, const Ranges& b);
/// What either holds.
Ranges united(const Ranges& a, const Ranges& b);
/// What is in `whole` but not in `ranges`.
Ranges complement(const Ranges& ranges, Span whole);

/// How many numbers they hold.
int64_t count(const Ranges& ranges);
/// Whether they hold the number. O(log ranges).
bool contains(const Ranges& ranges, int64_t number);

}  // namespace torchlore::detail
