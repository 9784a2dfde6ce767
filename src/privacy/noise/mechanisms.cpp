#include "torchlore/privacy/mechanisms.hpp"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_like.h>

#include <cmath>

#include "host_pieces.hpp"
#include "stair_sampler.hpp"
#include "torchlore/core/error.hpp"
#include "torchlore/privacy/gaussian_mechanism.hpp"
#include "torchlore/privacy/gaussian_noise.hpp"
#include "torchlore/privacy/pure_dp.hpp"

namespace torchlore {
namespace {

/// A contiguous copy that noise may be added to.
at::Tensor copy_of(const at::Tensor& values) {
  TORCH_CHECK_VALUE(values.defined(), "the mechanism got an undefined tensor");
  return values.detach().clone(at::MemoryFormat::Contiguous);
}

/// The condition under which raising the noise pays for rounding the values to its grid.
void check_grid(double times_sensitivity, double dimension, const char* what) {
  TORCH_CHECK_VALUE(
      times_sensitivity * dimension < 0x1p26, "the noise is ", times_sensitivity,
      " times the sensitivity, and that times ", what, " is ", times_sensitivity * dimension,
      "; from 2^26 on, rounding to the noise's grid would not be paid for. Release fewer "
      "values at once, or with a larger epsilon");
}

}  // namespace

at::Tensor gaussian_mechanism(const at::Tensor& values, const GaussianMechanismOptions& options,
                              const NoiseSource& source) {
  check_positive("l2_sensitivity", options.l2_sensitivity);
  const double multiplier = gaussian_noise_multiplier(options.epsilon, options.delta);
  auto result = copy_of(values);
  check_grid(multiplier, std::sqrt(static_cast<double>(values.numel())), "sqrt(elements)");
  add_gaussian_noise_({result}, multiplier * options.l2_sensitivity, source);
  return result;
}

at::Tensor laplace_mechanism(const at::Tensor& values, const LaplaceMechanismOptions& options,
                             const NoiseSource& source) {
  check_positive("l1_sensitivity", options.l1_sensitivity);
  const double multiplier = laplace_noise_multiplier(options.epsilon);
  auto result = copy_of(values);
  check_grid(multiplier, static_cast<double>(values.numel()), "the elements");
  const double scale = multiplier * options.l1_sensitivity;
  check_in_range("l1_sensitivity / epsilon", scale, 1e-200, 1e200);
  const auto grid = privacy::NoiseGrid::of(scale);
  const at::NoGradGuard no_grad;
  const privacy::HostPieces pieces({result}, grid.inverse_unit());
  privacy::add_on_grid(pieces, grid, privacy::NoiseDraw(source),
                       privacy::LaplaceSampler(grid.scale));
  pieces.write_back({result});
  return result;
}

}  // namespace torchlore
