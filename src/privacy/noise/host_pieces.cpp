#include "host_pieces.hpp"

#include <ATen/MemoryOverlap.h>
#include <ATen/Parallel.h>

#include <cmath>

#include "../../core/kernels/element_of.hpp"
#include "noise_kernels.hpp"

namespace torchlore::privacy {
namespace {

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

void check_memory_is_apart(const std::vector<HostPiece>& pieces) {
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

void check_values(const std::vector<HostPiece>& pieces, double inverse_unit) {
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

void add_to_run(float* values, const int64_t* noise, int64_t count, const NoiseGrid& grid) {
  kernels::noise_kernels().add_on_grid_f32(values, noise, count, grid.unit(), grid.inverse_unit());
}

void add_to_run(double* values, const int64_t* noise, int64_t count, const NoiseGrid& grid) {
  kernels::noise_kernels().add_on_grid_f64(values, noise, count, grid.unit(), grid.inverse_unit());
}

}  // namespace

HostPieces::HostPieces(at::TensorList tensors, double inverse_unit) {
  for (size_t i = 0; i < tensors.size(); ++i) check_tensor(tensors[i], i);
  int64_t first = 0;
  for (const auto& tensor : tensors) {
    pieces_.push_back({.host = on_host(tensor), .first = first});
    first += tensor.numel();
  }
  check_memory_is_apart(pieces_);
  check_values(pieces_, inverse_unit);
}

void HostPieces::for_each_chunk(
    const std::function<void(int64_t part, int64_t begin, int64_t end)>& f) const {
  const int64_t all = total();
  at::parallel_for(0, (all + kChunk - 1) / kChunk, 1, [&](int64_t from, int64_t to) {
    for (int64_t part = from; part < to; ++part) {
      f(part, part * kChunk, std::min(all, (part + 1) * kChunk));
    }
  });
}

void HostPieces::write_back(at::TensorList tensors) const {
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (!pieces_[i].host.is_alias_of(tensors[i])) tensors[i].copy_(pieces_[i].host);
  }
}

void add_on_grid(const HostPieces& pieces, const NoiseGrid& grid, const NoiseDraw& draw,
                 const NoiseSampler& sampler) {
  pieces.for_each_chunk([&](int64_t part, int64_t begin, int64_t end) {
    sampler.draw(end - begin, draw, part, [&](std::span<const int64_t> noise) {
      const auto size = static_cast<int64_t>(noise.size());
      const int64_t* next = noise.data();
      pieces.for_each_run(begin, begin + size, [&](auto* values, int64_t count) {
        add_to_run(values, next, count, grid);
        next += count;
      });
      begin += size;
    });
  });
}

}  // namespace torchlore::privacy
