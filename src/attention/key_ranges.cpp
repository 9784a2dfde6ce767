#include "key_ranges.hpp"

namespace torchlore::detail {

void normalise(Ranges& spans) {
  std::sort(spans.begin(), spans.end(), [](Span a, Span b) { return a.begin < b.begin; });
  Ranges joined;
  for (const Span span : spans) append(joined, span);
  spans = std::move(joined);
}

Ranges intersection(const Ranges& a, const Ranges& b) {
  Ranges both;
  for (size_t i = 0, j = 0; i < a.size() && j < b.size();) {
    append(both, overlap(a[i], b[j]));
    (a[i].end < b[j].end ? i : j) += 1;
  }
  return both;
}

Ranges united(const Ranges& a, const Ranges& b) {
  Ranges either;
  for (size_t i = 0, j = 0; i < a.size() || j < b.size();) {
    const bool from_a = j == b.size() || (i < a.size() && a[i].begin <= b[j].begin);
    append(either, from_a ? a[i++] : b[j++]);
  }
  return either;
}

Ranges complement(const Ranges& ranges, Span whole) {
  Ranges rest;
  int64_t from = whole.begin;
  for (const Span span : ranges) {
    append(rest, overlap({from, span.begin}, whole));
    from = std::max(from, span.end);
  }
  append(rest, overlap({from, whole.end}, whole));
  return rest;
}

int64_t count(const Ranges& ranges) {
  int64_t sum = 0;
  for (const Span span : ranges) sum += span.size();
  return sum;
}

bool contains(const Ranges& ranges, int64_t number) {
  const auto after = std::upper_bound(ranges.begin(), ranges.end(), number,
                                      [](int64_t n, Span span) { return n < span.begin; });
  return after != ranges.begin() && std::prev(after)->contains(number);
}

}  // namespace torchlore::detail
