#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "noise_grid.hpp"
#include "noise_sampler.hpp"

namespace torchlore::privacy {

constexpr int64_t kChunk = 1 << 16;  ///< elements that share a stream of random bits

/// A tensor of a list as contiguous float32 or float64 memory on the host, at its place in one long
/// vector.
struct HostPiece {
  at::Tensor host;
  int64_t first = 0;

  int64_t count() const { return host.numel(); }
};

/// The tensors of a list, ready to get noise: themselves where they can be written directly, else copies.
class HostPieces {
 public:
  /// Checks all that `add_gaussian_noise_` promises, and changes nothing.
  HostPieces(at::TensorList tensors, double inverse_unit);

  int64_t total() const {
    return pieces_.empty() ? 0 : pieces_.back().first + pieces_.back().count();
  }

  /// Calls f(pointer, count) for the memory of elements [begin, end) of the long vector, piece by piece.
  template <typename F>
  void for_each_run(int64_t begin, int64_t end, const F& f) const {
    std::vector<HostPiece>::const_iterator next = std::upper_bound(
        pieces_.begin(), pieces_.end(), begin, [](int64_t element, const HostPiece& piece) {
          return element < piece.first + piece.count();
        });
    for (; next != pieces_.end() && next->first < end; ++next) {
      const HostPiece& piece = *next;
      const int64_t from = std::max(begin, piece.first) - piece.first;
      const int64_t to = std::min(end, piece.first + piece.count()) - piece.first;
      if (from == to) continue;
      if (piece.host.scalar_type() == at::kDouble) {
        f(piece.host.mutable_data_ptr<double>() + from, to - from);
      } else {
        f(piece.host.mutable_data_ptr<float>() + from, to - from);
      }
    }
  }

  /// Calls f(part, begin, end) for each chunk of the long vector, on LibTorch's threads.
  void for_each_chunk(const std::function<void(int64_t part, int64_t begin, int64_t end)>& f) const;

  /// Copies back where it was a copy that was written.
  void write_back(at::TensorList tensors) const;

 private:
  std::vector<HostPiece> pieces_;
};

/// Rounds the values to the grid and adds whole numbers: what comes out is a function of their sum alone.
void add_on_grid(const HostPieces& pieces, const NoiseGrid& grid, const NoiseDraw& draw,
                 const NoiseSampler& sampler);

}  // namespace torchlore::privacy
