#include "torchlore/gradient/clipper.hpp"

#include <ATen/ops/scalar_tensor.h>

#include "torchlore/core/gradient_pass.hpp"

namespace torchlore {

double Clipper::max_norm(const at::Tensor& /*norm*/) { return kNoClip; }

void Clipper::divide_and_clip_(const ParameterView& parameters, const at::Tensor& divisor) {
  divide_gradients_(gradients(parameters), divisor);
}

Clip::Clip(const Clip& other)
    : clipper_(other.clipper_ ? other.copy_(*other.clipper_) : nullptr), copy_(other.copy_) {}

Clip& Clip::operator=(const Clip& other) {
  auto copy = other;
  return *this = std::move(copy);
}

at::Tensor Clip::clip_(const ParameterView& parameters, const ClipOptions& options) {
  const auto grads = gradients(parameters);
  if (clipper_ && clipper_->norm_type()) {
    const auto stats = gradient_stats(grads, *clipper_->norm_type(), options.reducer);
    const auto clipped = clip_to_norm(stats.norm, options.divisor, [this](const at::Tensor& norm) {
      return clipper_->max_norm(norm);
    });
    divide_gradients_(grads, clipped.divisor);
    return clipped.norm;
  }
  const auto divisor =
      options.divisor.defined() ? options.divisor : at::scalar_tensor(1.0, at::kDouble);
  if (clipper_) {
    clipper_->divide_and_clip_(parameters, divisor);
  } else {
    divide_gradients_(grads, divisor);
  }
  return {};
}

StateDict Clip::state_dict() const { return clipper_ ? clipper_->state_dict() : StateDict{}; }

void Clip::load_state_dict(const StateDict& state) {
  if (clipper_) clipper_->load_state_dict(state);
}

}  // namespace torchlore
