#include "torchlore/privacy/discrete_noise.hpp"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include "host_pieces.hpp"
#include "stair_sampler.hpp"

namespace torchlore {
namespace {

using privacy::kChunk;
using privacy::NoiseDraw;

at::Tensor filled(at::IntArrayRef sizes, const NoiseSource& source,
                  const privacy::NoiseSampler& sampler) {
  const auto result = at::empty(sizes, at::kLong);
  const int64_t count = result.numel();
  const NoiseDraw draw(source);
  auto* data = result.mutable_data_ptr<int64_t>();
  at::parallel_for(0, (count + kChunk - 1) / kChunk, 1, [&](int64_t from, int64_t to) {
    for (int64_t part = from; part < to; ++part) {
      const auto size = static_cast<size_t>(std::min(kChunk, count - part * kChunk));
      sampler.fill(std::span(data + part * kChunk, size), draw, part);
    }
  });
  return result;
}

}  // namespace

at::Tensor discrete_gaussian(at::IntArrayRef sizes, double sigma, const NoiseSource& source) {
  return filled(
      sizes, source,
      privacy::GaussianSampler(privacy::Scale::at_least(sigma), c10::multiply_integers(sizes)));
}

at::Tensor discrete_laplace(at::IntArrayRef sizes, double scale, const NoiseSource& source) {
  return filled(sizes, source, privacy::LaplaceSampler(privacy::Scale::at_least(scale)));
}

}  // namespace torchlore
