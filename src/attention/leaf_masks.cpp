#include "leaf_masks.hpp"

#include <bit>
#include <cstring>

namespace torchlore::detail {
namespace {

int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }  // b > 0
int64_t ceil_div(int64_t a, int64_t b) { return -floor_div(-a, b); }

Ranges one(Span span) {
  Ranges ranges;
  append(ranges, span);
  return ranges;
}

Span shifted(Span span, int64_t by) { return {span.begin + by, span.end + by}; }

}  // namespace

Span DocumentsMask::row(int64_t query) const {
  const int64_t position = query + offset_;
  if (position < 0) return {0, 0};
  if (position >= bounds_.back()) return {bounds_.back(), bounds_.back()};
  const auto after = std::upper_bound(bounds_.begin(), bounds_.end(), position);
  return {*(after - 1), *after};
}

Span DilatedMask::multiples(Span positions, Span keys) const {
  const int64_t lowest = ceil_div(keys.begin - (positions.end - 1), dilation_);
  const int64_t highest = floor_div(keys.end - 1 - positions.begin, dilation_);
  return {std::max(lowest, -reach_), std::min(highest, reach_) + 1};
}

Ranges DilatedMask::any(Span queries, Span keys) {
  const Span positions = shifted(queries, offset_);
  const Span steps = multiples(positions, keys);
  if (steps.empty()) return {};
  if (dilation_ <= positions.size()) {  // neighbouring steps meet
    return one(overlap(
        {positions.begin + steps.begin * dilation_, positions.end + (steps.end - 1) * dilation_},
        keys));
  }
  Ranges ranges;
  for (int64_t step = steps.begin; step < steps.end; ++step) {
    append(ranges, overlap(shifted(positions, step * dilation_), keys));
  }
  return ranges;
}

Ranges DilatedMask::every(Span queries, Span keys) {
  if (queries.size() == 1) return any(queries, keys);
  if (dilation_ > 1) return {};  // two neighbours have no key in common
  return one(
      overlap({queries.end - 1 + offset_ - reach_, queries.begin + offset_ + reach_ + 1}, keys));
}

void DilatedMask::words(Span queries, Span keys, uint64_t* words) {
  for (int64_t query = queries.begin; query < queries.end; ++query) {
    const int64_t position = query + offset_;
    const Span steps = multiples({position, position + 1}, keys);
    uint64_t word = 0;
    for (int64_t step = steps.begin; step < steps.end; ++step) {
      word |= uint64_t{1} << (position + step * dilation_ - keys.begin);
    }
    *words++ = word;
  }
}

Ranges StridedMask::each(Span keys) const {
  Ranges ranges;
  int64_t begin = first_ + floor_div(keys.begin - first_, stride_) * stride_;
  for (; begin < keys.end; begin += stride_) append(ranges, overlap({begin, begin + run_}, keys));
  return ranges;
}

Ranges StridedMask::any(Span queries, Span keys) {
  return close() && queries.size() > 1 ? one(keys) : each(keys);
}

Ranges StridedMask::every(Span queries, Span keys) {
  return close() && queries.size() > 1 ? Ranges() : each(keys);
}

void StridedMask::words(Span queries, Span keys, uint64_t* words) {
  uint64_t word = 0;
  for (const Span run : each(keys)) word |= shared_bits(run, keys);
  std::fill_n(words, queries.size(), word);
}

Ranges LogSparseMask::any(Span queries, Span keys) {
  const Span positions = shifted(queries, offset_);
  const int64_t farthest = positions.end - 1 - keys.begin;
  Ranges ranges;
  if (farthest > 0) {
    auto distance = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(farthest)));
    for (; distance > 0; distance /= 2) {
      append(ranges, overlap(shifted(positions, -distance), keys));
    }
  }
  append(ranges, overlap(positions, keys));
  return ranges;
}

Ranges LogSparseMask::every(Span queries, Span keys) {
  // Few queries share a key; a block of which all pairs are visible shows by its words.
  return queries.size() == 1 ? any(queries, keys) : Ranges();
}

void LogSparseMask::words(Span queries, Span keys, uint64_t* words) {
  const Span positions = shifted(queries, offset_);
  std::fill_n(words, queries.size(), 0);
  const auto add = [&](int64_t distance) {
    const Span seen = overlap(shifted(positions, -distance), keys);
    for (int64_t key = seen.begin; key < seen.end; ++key) {
      words[key + distance - positions.begin] |= uint64_t{1} << (key - keys.begin);
    }
  };
  add(0);
  for (int64_t distance = 1; distance <= positions.end - 1 - keys.begin; distance *= 2) {
    add(distance);
  }
}

int64_t GlobalMask::count_in(Span positions) const {
  const auto at = [&](int64_t position) {
    return std::lower_bound(positions_.begin(), positions_.end(), position);
  };
  return positions.empty() ? 0 : at(positions.end) - at(positions.begin);
}

Ranges GlobalMask::columns(Span keys) const {
  Ranges ranges;
  for (auto at = std::lower_bound(positions_.begin(), positions_.end(), keys.begin);
       at != positions_.end() && *at < keys.end; ++at) {
    append(ranges, {*at, *at + 1});
  }
  return ranges;
}

Ranges GlobalMask::any(Span queries, Span keys) {
  return count_in(shifted(queries, offset_)) > 0 ? one(keys) : columns(keys);
}

Ranges GlobalMask::every(Span queries, Span keys) {
  return count_in(shifted(queries, offset_)) == queries.size() ? one(keys) : columns(keys);
}

void GlobalMask::words(Span queries, Span keys, uint64_t* words) {
  uint64_t word = 0;
  for (const Span span : columns(keys)) word |= shared_bits(span, keys);
  for (int64_t query = queries.begin; query < queries.end; ++query) {
    const int64_t position = query + offset_;
    *words++ = count_in({position, position + 1}) > 0 ? shared_bits(keys, keys) : word;
  }
}

Ranges PairwiseMask::any(Span queries, Span keys) {
  if (queries.size() > 1) return one(keys);
  Ranges ranges;
  for (int64_t key = keys.begin; key < keys.end; key += 64) {
    const Span part = {key, std::min(key + 64, keys.end)};
    uint64_t word = 0;
    words(queries, part, &word);
    for (; word != 0; word &= word - 1) {
      const int64_t seen = key + std::countr_zero(word);
      append(ranges, {seen, seen + 1});
    }
  }
  return ranges;
}

Ranges PairwiseMask::every(Span queries, Span keys) {
  return queries.size() > 1 ? Ranges() : any(queries, keys);
}

void CustomMask::words(Span queries, Span keys, uint64_t* words) {
  for (int64_t query = queries.begin; query < queries.end; ++query) {
    uint64_t word = 0;
    for (int64_t key = keys.begin; key < keys.end; ++key) {
      if (of_.visible(query, key, where_)) word |= uint64_t{1} << (key - keys.begin);
    }
    *words++ = word;
  }
}

DenseMask::DenseMask(const nodes::Dense& of, const Where& where) : keys_(where.keys) {
  const auto shape = of.visible.sizes();
  const int64_t batch = shape[0] == 1 ? 0 : where.batch;
  const int64_t head = shape[1] == 1 ? 0 : where.head;
  data_ = of.visible.const_data_ptr<bool>() + (batch * shape[1] + head) * shape[2] * shape[3];
}

void DenseMask::words(Span queries, Span keys, uint64_t* words) {
  for (int64_t query = queries.begin; query < queries.end; ++query) {
    const bool* row = data_ + query * keys_;
    uint64_t word = 0;
    int64_t key = keys.begin;
    for (; key + 8 <= keys.end; key += 8) {
      // The product moves the lowest bits of eight bytes of 0 or 1 next to each other, on top.
      uint64_t bytes = 0;
      std::memcpy(&bytes, row + key, 8);
      word |= (bytes * 0x0102'0408'1020'4080u >> 56) << (key - keys.begin);
    }
    for (; key < keys.end; ++key) word |= uint64_t{row[key]} << (key - keys.begin);
    *words++ = word;
  }
}

}  // namespace torchlore::detail
