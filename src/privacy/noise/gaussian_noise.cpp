#include "torchlore/privacy/gaussian_noise.hpp"

#include <ATen/MemoryOverlap.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <openssl/crypto.h>

#include <algorithm>
#include <functional>
#include <vector>

#include "../../core/kernels/element_of.hpp"
#include "noise_draw.hpp"
#include "noise_grid.hpp"
#include "stair_sampler.hpp"
#include "torchlore/core/error.hpp"

namespace torchlore {
namespace {

using privacy::NoiseDraw;
using privacy::NoiseGrid;

constexpr int64_t kChunk = 1 << 16;  // elements that share a stream of random bits

/// A tensor of the list as memory on the host, at its place in one long vector.
struct Piece {
  at::Tensor host;
  int64_t first = 0;

  int64_t count() const { return host.numel(); }
  bool is_wide() const { return host.scalar_type() == at::kDouble; }
};

void check_tensor(const at::Tensor& tensor, size_t index) {
  TORCH_CHECK_VALUE(
      tensor.defined(), "tensor ", index,
      " of those that should get noise is undefined; the gradient of a parameter that "
      "was not used must be zeros, for it needs noise too");
  const auto dtype = tensor.scalar_type();
  TORCH_CHECK_TYPE(
      dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf || dtype == at::kBFloat16,
      "noise is added to float32, float64, float16 and bfloat16 tensors, but tensor ", index,
      " is ", dtype);
  TORCH_CHECK_VALUE(
      at::has_internal_overlap(tensor) != at::MemOverlap::Yes, "tensor ", index,
      " has elements that share memory (an expanded tensor); noise is added to a copy: "
      "clone() it");
}

/// A contiguous float32 or float64 tensor on the host: the tensor itself if it is one.
at::Tensor on_host(const at::Tensor& tensor) {
  const auto dtype = tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return tensor.detach().to(at::kCPU, dtype).contiguous();
}

void check_memory_is_apart(const std::vector<Piece>& pieces) {
  std::vector<std::pair<const char*, const char*>> spans;
  for (const auto& piece : pieces) {
    const auto* begin = static_cast<const char*>(piece.host.const_data_ptr());
    if (piece.count() > 0) spans.emplace_back(begin, begin + piece.host.nbytes());
  }
  std::sort(spans.begin(), spans.end());
  for (size_t i = 1; i < spans.size(); ++i) {
    TORCH_CHECK_VALUE(spans[i - 1].second <= spans[i].first,
                      "two of the tensors that should get noise share memory; name each once");
  }
}

void check_values(const std::vector<Piece>& pieces, double inverse_unit) {
  const auto& kernels = kernels::gradient_kernels();
  for (size_t i = 0; i < pieces.size(); ++i) {
    const auto& host = pieces[i].host;
    const double largest = kernels.max_abs(host.const_data_ptr(), host.numel(),
                                           kernels::element_of(host.scalar_type()));
    TORCH_CHECK_VALUE(
        std::isfinite(largest), "tensor ", i,
        " of those that should get noise holds a value that is not finite, which no noise "
        "hides; drop the examples that caused it before they are summed");
    TORCH_CHECK_VALUE(std::isfinite(largest * inverse_unit), "tensor ", i, " holds ", largest,
                      ", which is out of proportion to the noise");
  }
}

std::vector<Piece> pieces_of(at::TensorList tensors) {
  for (size_t i = 0; i < tensors.size(); ++i) check_tensor(tensors[i], i);
  std::vector<Piece> pieces;
  int64_t first = 0;
  for (const auto& tensor : tensors) {
    pieces.push_back({.host = on_host(tensor), .first = first});
    first += tensor.numel();
  }
  check_memory_is_apart(pieces);
  return pieces;
}

/// Elements [begin, end) of the long vector: calls f(pointer, count) for the memory of each piece in it.
template <typename F>
void for_each_run(const std::vector<Piece>& pieces, int64_t begin, int64_t end, const F& f) {
  std::vector<Piece>::const_iterator next = std::upper_bound(
      pieces.begin(), pieces.end(), begin,
      [](int64_t element, const Piece& piece) { return element < piece.first + piece.count(); });
  for (; next != pieces.end() && next->first < end; ++next) {
    const Piece& piece = *next;
    const int64_t from = std::max(begin, piece.first) - piece.first;
    const int64_t to = std::min(end, piece.first + piece.count()) - piece.first;
    if (from == to) continue;
    if (piece.is_wide()) {
      f(piece.host.mutable_data_ptr<double>() + from, to - from);
    } else {
      f(piece.host.mutable_data_ptr<float>() + from, to - from);
    }
  }
}

/// Rounds to the grid, adds the whole number, and rounds the sum once: IEEE 754 addition gives the
/// double next to the exact sum, so the result is a function of that sum alone. All noise is below
/// 2^53 and thus a double.
template <typename T>
void add_on_grid(T* values, const int64_t* noise, int64_t count, const NoiseGrid& grid) {
  const double unit = grid.unit(), inverse = grid.inverse_unit();
  for (int64_t i = 0; i < count; ++i) {
    const double rounded = std::nearbyint(static_cast<double>(values[i]) * inverse);
    values[i] = static_cast<T>((rounded + static_cast<double>(noise[i])) * unit);
  }
}

void add_secure(const std::vector<Piece>& pieces, const NoiseDraw& draw,
                const privacy::GaussianSampler& sampler, const NoiseGrid& grid, int64_t begin,
                int64_t end) {
  std::vector<int64_t> noise(static_cast<size_t>(end - begin));
  sampler.fill(noise, draw, begin / kChunk);
  const int64_t* next = noise.data();
  for_each_run(pieces, begin, end, [&](auto* values, int64_t count) {
    add_on_grid(values, next, count, grid);
    next += count;
  });
  OPENSSL_cleanse(noise.data(), noise.size() * sizeof(noise[0]));
}

void add_fast(const std::vector<Piece>& pieces, const NoiseDraw& draw, double stddev, int64_t begin,
              int64_t end) {
  constexpr int64_t kGroups = 32;  // 8 KiB at once
  std::array<float, kGroups * kernels::kPhiloxWords> numbers;
  auto counter = draw.philox(begin / kChunk);
  auto next = numbers.end();
  for_each_run(pieces, begin, end, [&](auto* values, int64_t count) {
    using T = std::remove_pointer_t<decltype(values)>;
    for (int64_t done = 0; done < count;) {
      if (next == numbers.end()) {
        kernels::noise_kernels().normal(numbers.data(), kGroups, counter);
        counter.index += kGroups * kernels::kPhiloxBlocks;
        next = numbers.begin();
      }
      const int64_t run = std::min<int64_t>(count - done, numbers.end() - next);
      for (int64_t i = 0; i < run; ++i) {
        values[done + i] += static_cast<T>(stddev) * static_cast<T>(next[i]);
      }
      done += run;
      next += run;
    }
  });
}

}  // namespace

void add_gaussian_noise_(at::TensorList tensors, double stddev, const NoiseSource& source) {
  if (stddev != 0) check_in_range("stddev of the noise, if it is not 0,", stddev, 1e-200, 1e200);
  const at::NoGradGuard no_grad;
  const auto pieces = pieces_of(tensors);
  const NoiseGrid grid = NoiseGrid::of(stddev == 0 ? 1 : stddev);
  check_values(pieces, grid.inverse_unit());
  if (stddev == 0 || pieces.empty()) return;
  const NoiseDraw draw(source);
  const int64_t total = pieces.back().first + pieces.back().count();
  const privacy::GaussianSampler sampler(grid.scale, source.is_secure() ? total : 0);
  at::parallel_for(0, (total + kChunk - 1) / kChunk, 1, [&](int64_t from, int64_t to) {
    for (int64_t chunk = from; chunk < to; ++chunk) {
      const int64_t begin = chunk * kChunk, end = std::min(total, begin + kChunk);
      if (source.is_secure()) {
        add_secure(pieces, draw, sampler, grid, begin, end);
      } else {
        add_fast(pieces, draw, stddev, begin, end);
      }
    }
  });
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (!pieces[i].host.is_alias_of(tensors[i])) tensors[i].copy_(pieces[i].host);
  }
}

}  // namespace torchlore
