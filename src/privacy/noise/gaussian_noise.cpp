#include "torchlore/privacy/gaussian_noise.hpp"

#include <ATen/core/grad_mode.h>

#include <array>

#include "host_pieces.hpp"
#include "stair_sampler.hpp"
#include "torchlore/core/error.hpp"

namespace torchlore {
namespace {

using privacy::HostPieces;
using privacy::NoiseDraw;
using privacy::NoiseGrid;

/// Float32 normal numbers for elements [begin, end).
void add_normals(const HostPieces& pieces, const NoiseDraw& draw, double stddev, int64_t part,
                 int64_t begin, int64_t end) {
  constexpr int64_t kGroups = 32;  // 8 KiB at once
  std::array<float, kGroups * kernels::kPhiloxWords> numbers;
  auto counter = draw.philox(part);
  auto next = numbers.end();
  pieces.for_each_run(begin, end, [&](auto* values, int64_t count) {
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
  const NoiseGrid grid = NoiseGrid::of(stddev == 0 ? 1 : stddev);
  const HostPieces pieces(tensors, grid.inverse_unit());
  if (stddev == 0) return;
  const NoiseDraw draw(source);
  if (source.is_secure()) {
    privacy::add_on_grid(pieces, grid, draw, privacy::GaussianSampler(grid.scale, pieces.total()));
  } else {
    pieces.for_each_chunk([&](int64_t part, int64_t begin, int64_t end) {
      add_normals(pieces, draw, stddev, part, begin, end);
    });
  }
  pieces.write_back(tensors);
}

}  // namespace torchlore
