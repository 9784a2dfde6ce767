#include "random_choice.hpp"

#include <algorithm>
#include <bit>
#include <cmath>

#include "torchlore/core/philox.hpp"

namespace torchlore::detail {
namespace {

// Streams of the library, one for each kind of choice.
constexpr int64_t kTopKStream = 0xFFFF'FFFC;
constexpr int64_t kBlocksStream = 0xFFFF'FFFB;

/// The random numbers of one row: 2^33 of them lie between a row and the next.
PhiloxEngine engine_of(uint64_t seed, int64_t head, int64_t row, int64_t stream) {
  return PhiloxEngine(PhiloxStream(seed, head, stream), static_cast<uint64_t>(row) << 33);
}

/// A set of numbers with a known limit to its size: open addressing, at most half full.
class NumberSet {
 public:
  explicit NumberSet(int64_t limit)
      : slots_(std::bit_ceil(static_cast<size_t>(2 * limit + 1)), kFree) {}

  /// Whether it was not there yet.
  bool insert(int64_t number) {
    const size_t mask = slots_.size() - 1;
    size_t slot = static_cast<size_t>(number) * 0x9E37'79B9'7F4A'7C15u >> 20 & mask;
    while (slots_[slot] != kFree && slots_[slot] != number) slot = (slot + 1) & mask;
    if (slots_[slot] == number) return false;
    slots_[slot] = number;
    return true;
  }

 private:
  static constexpr int64_t kFree = -1;
  std::vector<int64_t> slots_;
};

/// `count` different numbers of [0, n), ascending; each set of them with the same probability.
/// Source: Bentley and Floyd (1987), "A sample of brilliance", CACM 30(9).
std::vector<int64_t> sample(int64_t n, int64_t count, PhiloxEngine engine) {
  std::vector<int64_t> numbers;
  numbers.reserve(static_cast<size_t>(count));
  NumberSet seen(count);
  for (int64_t last = n - count; last < n; ++last) {
    const auto number = static_cast<int64_t>(engine.below(static_cast<uint64_t>(last) + 1));
    const bool fresh = seen.insert(number);
    if (!fresh) seen.insert(last);
    numbers.push_back(fresh ? number : last);
  }
  std::sort(numbers.begin(), numbers.end());
  return numbers;
}

/// Replaces ascending ranks by the numbers of `from` that have them.
void to_numbers(std::vector<int64_t>& ranks, const Ranges& from) {
  auto span = from.begin();
  int64_t before = 0;
  for (int64_t& rank : ranks) {
    while (rank - before >= span->size()) before += (span++)->size();
    rank = span->begin + (rank - before);
  }
}

/// `count` numbers of `from`, or all if there are fewer. Those of `kept` are always among them.
std::vector<int64_t> choose(const Ranges& from, int64_t count_wanted, const Ranges& kept,
                            const PhiloxEngine& engine) {
  const Ranges sure = intersection(from, kept);
  const Span all = from.empty() ? Span{} : Span{from.front().begin, from.back().end};
  const Ranges others = intersection(from, complement(sure, all));
  const int64_t n = count(others);
  const int64_t wanted = std::clamp<int64_t>(count_wanted - count(sure), 0, n);
  auto numbers = sample(n, wanted, engine);
  to_numbers(numbers, others);
  for (const Span span : sure) {
    for (int64_t number = span.begin; number < span.end; ++number) numbers.push_back(number);
  }
  std::sort(numbers.begin(), numbers.end());
  return numbers;
}

/// What a choice always keeps.
template <typename Random>
Ranges with_diagonal(const Random& of, const Ranges& always, Span own) {
  return of.keep_diagonal ? united(always, {own}) : always;
}

}  // namespace

std::vector<int64_t> chosen_keys(const nodes::RandomTopK& of, const Ranges& visible,
                                 const Ranges& always, int64_t own, int64_t query, int64_t head) {
  const Ranges kept = with_diagonal(of, always, {own, own + 1});
  return choose(visible, of.k, kept, engine_of(of.seed, head, query, kTopKStream));
}

std::vector<int64_t> chosen_blocks(const nodes::RandomBlocks& of, const Ranges& visible,
                                   const Ranges& always, Span own, int64_t block, int64_t head) {
  int64_t wanted = of.count;
  if (wanted == 0) {
    const double share = (1 - of.sparsity) * static_cast<double>(count(visible));
    wanted = std::max<int64_t>(1, std::llround(share));
  }
  const Ranges kept = with_diagonal(of, always, own);
  return choose(visible, wanted, kept, engine_of(of.seed, head, block, kBlocksStream));
}

}  // namespace torchlore::detail
