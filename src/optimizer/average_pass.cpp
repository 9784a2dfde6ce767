#include "average_pass.hpp"

#include <ATen/Parallel.h>
#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/_foreach_lerp.h>

#include <algorithm>
#include <cstring>
#include <functional>

#include "../core/kernels/element_of.hpp"
#include "../core/kernels/gradient_kernels.hpp"

namespace torchlore::average {
namespace {

/// Elements that are walked at a time, and those worth a thread of their own.
constexpr int64_t kChunk = 65536, kGrain = 32768;

struct Piece {
  char* average;
  char* live;
  int64_t count;
  int64_t start;  // elements before it in the whole pass
  const Pair* pair;
};

/// Host pairs of one memory order, cut into pieces.
class Pieces {
 public:
  void add(const Pair& pair) {
    auto* average = static_cast<char*>(pair.average.mutable_data_ptr());
    auto* live = static_cast<char*>(pair.live.mutable_data_ptr());
    const auto average_size = static_cast<int64_t>(pair.average.element_size());
    const auto live_size = static_cast<int64_t>(pair.live.element_size());
    for (int64_t i = 0; i < pair.live.numel(); i += kChunk) {
      const auto count = std::min(kChunk, pair.live.numel() - i);
      pieces_.push_back({average + i * average_size, live + i * live_size, count, total_, &pair});
      total_ += count;
    }
  }

  /// Calls f(piece) for every piece, in one parallel region; a thread takes those that begin in its
  /// share of the elements.
  template <typename F>
  void for_each(const F& f) const {
    at::parallel_for(0, total_, kGrain, [&](int64_t begin, int64_t end) {
      auto piece = std::lower_bound(pieces_.begin(), pieces_.end(), begin,
                                    [](const Piece& p, int64_t at) { return p.start < at; });
      for (; piece != pieces_.end() && piece->start < end; ++piece) f(*piece);
    });
  }

 private:
  std::vector<Piece> pieces_;
  int64_t total_ = 0;
};

/// Whether both lie on the host, and element i of one where element i of the other does.
bool in_step(const Pair& pair) {
  const auto& [name, live, average] = pair;
  return live.is_cpu() && average.is_cpu() && live.layout() == at::kStrided &&
         live.is_non_overlapping_and_dense() && live.sizes() == average.sizes() &&
         ((live.is_contiguous() && average.is_contiguous()) || live.strides() == average.strides());
}

bool has_kernel(const Pair& pair) {
  const auto live = pair.live.scalar_type();
  const bool half = live == at::kHalf || live == at::kBFloat16;
  return in_step(pair) && (half || live == at::kFloat || live == at::kDouble) &&
         pair.average.scalar_type() == (half ? at::kFloat : live);
}

void swap_memory(char* a, char* b, size_t bytes) {
  constexpr size_t kBlock = 8192;  // stays in the first-level cache
  char block[kBlock];
  while (bytes > 0) {
    const auto now = std::min(bytes, kBlock);
    std::memcpy(block, a, now);
    std::memcpy(a, b, now);
    std::memcpy(b, block, now);
    a += now;
    b += now;
    bytes -= now;
  }
}

}  // namespace

bool same_host_memory(const Pair& pair) {
  return in_step(pair) && pair.live.scalar_type() == pair.average.scalar_type() &&
         !pair.live.is_inference();
}

void copy_(const Pairs& pairs) {
  std::vector<at::Tensor> averages, lives;
  for (const auto& pair : pairs) {
    averages.push_back(pair.average);
    lives.push_back(pair.live);
  }
  if (!pairs.empty()) at::_foreach_copy_(averages, lives);
}

namespace {

/// The pairs that no kernel of ours takes, by LibTorch. Widening 16-bit weights takes memory, so not
/// all at once.
class ForeachLerp {
 public:
  explicit ForeachLerp(double weight) : weight_(weight) {}

  void add(const Pair& pair) {
    averages_.push_back(pair.average);
    lives_.push_back(pair.live.to(pair.average.scalar_type()));
    elements_ += pair.live.numel();
    if (elements_ >= kAtOnce) run();
  }
  void run() {
    if (!averages_.empty()) at::_foreach_lerp_(averages_, lives_, weight_);
    averages_.clear();
    lives_.clear();
    elements_ = 0;
  }

 private:
  static constexpr int64_t kAtOnce = 1 << 24;  // 64 MiB of float32
  double weight_;
  std::vector<at::Tensor> averages_, lives_;
  int64_t elements_ = 0;
};

}  // namespace

void lerp_(const Pairs& pairs, double weight) {
  Pieces pieces;
  Pairs integers;
  ForeachLerp others(weight);
  for (const auto& pair : pairs) {
    if (has_kernel(pair)) {
      pieces.add(pair);
    } else if (!at::isFloatingType(pair.live.scalar_type()) && !pair.live.is_complex()) {
      integers.push_back(pair);
    } else {
      others.add(pair);
    }
  }
  others.run();
  const auto lerp = kernels::gradient_kernels().lerp;
  pieces.for_each([&](const Piece& p) {
    lerp(p.average, p.live, p.count, kernels::element_of(p.pair->live.scalar_type()), weight);
  });
  copy_(integers);
}

void swap_bytes(const Pairs& pairs) {
  Pieces pieces;
  for (const auto& pair : pairs) pieces.add(pair);
  pieces.for_each([](const Piece& p) {
    swap_memory(p.average, p.live, static_cast<size_t>(p.count) * p.pair->live.element_size());
  });
  // Autograd must know, in case a graph still holds the old values.
  for (const auto& pair : pairs) pair.live.unsafeGetTensorImpl()->bump_version();
}

}  // namespace torchlore::average
