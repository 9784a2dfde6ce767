#include "embedding.hpp"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstddef>
#include <vector>

namespace torchlore::kernels {
namespace {

constexpr float kOne = 1;

/// Numbers the different tokens of one example: open addressing in a table of twice the rows.
class TokenSlots {
 public:
  explicit TokenSlots(int64_t rows) {
    while (static_cast<int64_t>(places_.size()) < 2 * rows) places_.resize(2 * places_.size());
  }

  void clear() {
    std::fill(places_.begin(), places_.end(), Place{});
    count_ = 0;
  }

  /// The token's number; `count()` before the call if it is new.
  int64_t slot(int64_t token) {
    const size_t mask = places_.size() - 1;
    // Fibonacci hashing: neighbouring tokens go far apart.
    size_t at =
        static_cast<size_t>(static_cast<uint64_t>(token) * 0x9e3779b97f4a7c15U >> 32) & mask;
    while (places_[at].slot >= 0 && places_[at].token != token) at = (at + 1) & mask;
    if (places_[at].slot < 0) places_[at] = {token, count_++};
    return places_[at].slot;
  }

  int64_t count() const { return count_; }

 private:
  struct Place {
    int64_t token = 0;
    int64_t slot = -1;
  };
  std::vector<Place> places_ = std::vector<Place>(2);
  int64_t count_ = 0;
};

/// Sums one example's rows by token; returns the number of different tokens.
int64_t sum_by_token(const EmbeddedTokens& t, int64_t example, TokenSlots& slots, float* sums,
                     const PerExampleKernels& k) {
  slots.clear();
  for (int64_t block = 0; block < t.layout.outer; ++block) {
    for (int64_t i = 0; i < t.layout.inner; ++i) {
      const int64_t row = t.layout.row(block, example, i);
      if (t.tokens[row] == t.padding_idx) continue;
      const int64_t known = slots.count();
      const int64_t slot = slots.slot(t.tokens[row]);
      const float* g = t.gradient + row * t.width;
      float* sum = sums + slot * t.width;
      if (slot == known) {
        std::copy_n(g, t.width, sum);
      } else {
        k.add_weighted(sum, t.width, g, 0, &kOne, 1);
      }
    }
  }
  return slots.count();
}

}  // namespace

void embedding_norms(const EmbeddedTokens& tokens, double* squared_norms,
                     detail::BufferPool& scratch, const PerExampleKernels& kernels) {
  at::parallel_for(0, tokens.layout.batch, 1, [&](int64_t begin, int64_t end) {
    TokenSlots slots(tokens.layout.rows());
    const auto sums = scratch.empty({tokens.layout.rows() * tokens.width});
    auto* data = sums.mutable_data_ptr<float>();
    for (int64_t b = begin; b < end; ++b) {
      const int64_t count = sum_by_token(tokens, b, slots, data, kernels);
      squared_norms[b] += kernels.sum_squares(data, count * tokens.width);
    }
  });
}

void add_embedding_gradients(const EmbeddedTokens& t, const float* factors, float* table,
                             const PerExampleKernels& kernels) {
  // Each thread has columns of its own, since two examples may hold the same token.
  at::parallel_for(0, t.width, 64, [&](int64_t begin, int64_t end) {
    for (int64_t block = 0; block < t.layout.outer; ++block) {
      for (int64_t b = 0; b < t.layout.batch; ++b) {
        for (int64_t i = 0; i < t.layout.inner; ++i) {
          const int64_t row = t.layout.row(block, b, i);
          if (t.tokens[row] == t.padding_idx) continue;
          kernels.add_weighted(table + t.tokens[row] * t.width + begin, end - begin,
                               t.gradient + row * t.width + begin, 0, factors + b, 1);
        }
      }
    }
  });
}

}  // namespace torchlore::kernels
