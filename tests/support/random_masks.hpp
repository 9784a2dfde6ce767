#pragma once

#include <cstdint>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "torchlore/attention/mask.hpp"

namespace torchlore::testing {

/// A mask, and the same rule written down a second time, by the formulas of the literature.
struct RuledMask {
  MaskSpec spec;
  std::function<bool(int64_t query, int64_t key)> rule;
};

/// Masks at random, of all kinds that are not random themselves, joined by &, | and ! up to a depth.
class RandomMasks {
 public:
  /// @param queries, keys lengths that the masks are for. @param align given to all of them.
  RandomMasks(uint64_t seed, int64_t queries, int64_t keys, Align align)
      : random_(seed), queries_(queries), keys_(keys), align_(align) {}

  RuledMask draw(int depth) {
    if (depth == 0 || below(4) == 0) return leaf();
    auto a = draw(depth - 1);
    if (below(4) == 0) return {!a.spec, [a](int64_t q, int64_t k) { return !a.rule(q, k); }};
    auto b = draw(depth - 1);
    if (below(2) == 0) {
      return {a.spec & b.spec,
              [a, b](int64_t q, int64_t k) { return a.rule(q, k) && b.rule(q, k); }};
    }
    return {a.spec | b.spec, [a, b](int64_t q, int64_t k) { return a.rule(q, k) || b.rule(q, k); }};
  }

  int64_t below(int64_t bound) {
    return static_cast<int64_t>(random_() % static_cast<uint64_t>(bound));
  }

 private:
  RuledMask leaf() {
    const int64_t shift = align_ == Align::bottom_right ? keys_ - queries_ : 0;
    const int64_t n = 1 + below(keys_ + 8);
    switch (below(11)) {
      case 0:
        return {mask::causal(align_), [=](int64_t q, int64_t k) { return k <= q + shift; }};
      case 1:
        return {mask::window(n, align_),
                [=](int64_t q, int64_t k) { return std::llabs(q + shift - k) < n; }};
      case 2:
        return {mask::sinks(n - 1), [=](int64_t, int64_t k) { return k < n - 1; }};
      case 3:
        return dilated(shift);
      case 4:
        return strided();
      case 9:
        return strided_runs();
      case 5:
        return {mask::log_sparse(align_), [=](int64_t q, int64_t k) {
                  const int64_t back = q + shift - k;
                  for (int64_t step = 1; step <= back; step *= 2) {
                    if (step == back) return true;
                  }
                  return back == 0;
                }};
      case 6:
        return documents(shift);
      case 7:
        return global_tokens(shift);
      case 8: {
        const int64_t factor = 1 + below(7);
        auto rule = [=](int64_t q, int64_t k) { return (q * factor + k * k) % 5 == 0; };
        return {mask::predicate([=](int64_t q, int64_t k, const Where&) { return rule(q, k); }),
                rule};
      }
      default:
        return {mask::prefix_lm(n - 1, align_),
                [=](int64_t q, int64_t k) { return k <= q + shift || k < n - 1; }};
    }
  }

  RuledMask dilated(int64_t shift) {
    const bool plain = below(3) == 0;  // no holes: whole blocks are full
    const int64_t size = 1 + below(plain ? 200 : 12);
    const int64_t step = plain ? 1 : 1 + below(90);
    return {mask::dilated(size, step, align_), [=](int64_t q, int64_t k) {
              for (int64_t i = -(size - 1); i < size; ++i) {
                if (q + shift + i * step == k) return true;
              }
              return false;
            }};
  }

  RuledMask strided() {
    const int64_t stride = 1 + below(80);
    const int64_t first = below(stride);
    return {mask::strided(stride, first), [=](int64_t, int64_t k) {
              while (k > first) k -= stride;
              return k == first;
            }};
  }

  RuledMask strided_runs() {
    const int64_t stride = 1 + below(80);
    const int64_t first = below(stride);
    const int64_t run = 1 + below(stride - first);
    return {mask::strided_runs(stride, first, run), [=](int64_t, int64_t k) {
              while (k >= stride) k -= stride;
              return k >= first && k < first + run;
            }};
  }

  RuledMask documents(int64_t shift) {
    std::vector<int64_t> lengths;
    std::vector<int64_t> owner;
    for (int64_t total = 0; total < keys_ - 5;) {
      const int64_t length = std::min<int64_t>(below(100), keys_ - total);
      owner.insert(owner.end(), static_cast<size_t>(length), static_cast<int64_t>(lengths.size()));
      lengths.push_back(length);
      total += length;
    }
    const auto of = [owner](int64_t position) {
      const bool inside = position >= 0 && position < static_cast<int64_t>(owner.size());
      return inside ? owner[static_cast<size_t>(position)] : -1;
    };
    return {mask::documents(lengths, align_),
            [=](int64_t q, int64_t k) { return of(k) >= 0 && of(q + shift) == of(k); }};
  }

  RuledMask global_tokens(int64_t shift) {
    std::vector<int64_t> positions;
    for (int64_t i = below(4); i > 0; --i) positions.push_back(below(keys_ + 10));
    return {mask::global_tokens(positions, align_), [=](int64_t q, int64_t k) {
              bool seen = false;
              for (const int64_t p : positions) seen = seen || p == k || p == q + shift;
              return seen;
            }};
  }

  std::mt19937_64 random_;
  int64_t queries_, keys_;
  Align align_;
};

}  // namespace torchlore::testing
