#include "torchlore/privacy/distributed_noise.hpp"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>

#include "client_update.hpp"
#include "torchlore/core/error.hpp"
#include "torchlore/privacy/discrete_noise.hpp"

namespace torchlore {
namespace {

/// How many standard deviations of the noise fit beside the largest possible sum of updates.
constexpr double kHeadroom = 12;

/// With shares this wide a sum of discrete Gaussian numbers differs from one such number by a factor of at
/// most 1 ± 10 clients exp(-2 pi^2 16 / 2) for each element, below 1e-67 clients (theorem of the source).
constexpr double kLeastShare = 4;

}  // namespace

DistributedNoise::DistributedNoise(const StateDict& like, DistributedNoiseOptions options)
    : options_(options) {
  check_in_range("clip_norm of DistributedNoise", options.clip_norm, 1e-100, 1e100);
  check_positive("noise_multiplier of DistributedNoise", options.noise_multiplier);
  check_count("clients of DistributedNoise", options.clients);
  TORCH_CHECK_VALUE(options.bits >= 8 && options.bits <= 48,
                    "bits of DistributedNoise must lie in [8, 48], but is ", options.bits);
  elements_ = privacy::check_model(like);
  for (const auto& [name, tensor] : like) like_[name] = tensor.detach();

  // One element of the sum is at most clients × (length + 1/2), and noise; where length is the norm in
  // steps, and rounding makes a client's norm length + sqrt(elements) / 2 at most.
  const auto clients = static_cast<double>(options.clients);
  const double rounding = std::sqrt(static_cast<double>(elements_)) / 2;
  const double noise = kHeadroom * options.noise_multiplier;
  const double range = std::ldexp(1.0, static_cast<int>(options.bits) - 1);
  const double length = (range - clients / 2 - noise * rounding) / (clients + noise);
  share_ = options.noise_multiplier * (length + rounding) / std::sqrt(clients);
  TORCH_CHECK_VALUE(length >= 1 && share_ >= kLeastShare, options.bits, " bits are too few for ",
                    options.clients, " clients, ", elements_,
                    " elements and a noise multiplier of ", options.noise_multiplier,
                    "; raise bits of DistributedNoise");
  step_ = options.clip_norm / length;
}

at::Tensor DistributedNoise::encode(const StateDict& update, const NoiseSource& source) const {
  const at::NoGradGuard no_grad;
  const auto text = privacy::difference(like_, update);
  TORCH_CHECK_VALUE(text.empty(), "an update must have the model's tensors, but ", text);
  const auto host = privacy::on_host(update);
  const double norm = privacy::norm_of(host);
  TORCH_CHECK_VALUE(std::isfinite(norm), "the norm of an update must be finite, but is ", norm);
  const double factor = privacy::clip_factor(norm, options_.clip_norm) / step_;
  const auto result = discrete_gaussian({elements_}, share_, source);
  int64_t first = 0;
  for (const auto& [name, tensor] : host) {
    privacy::accumulate(result.narrow(0, first, tensor.numel()), tensor, factor);
    first += tensor.numel();
  }
  auto* numbers = result.mutable_data_ptr<int64_t>();
  const int64_t mask = (int64_t{1} << options_.bits) - 1;
  for (int64_t i = 0; i < elements_; ++i) numbers[i] &= mask;  // modulo 2^bits, two's complement
  return result;
}

at::Tensor DistributedNoise::zero() const { return at::zeros({elements_}, at::kLong); }

void DistributedNoise::check_message(const at::Tensor& message) const {
  TORCH_CHECK_VALUE(message.defined() && message.scalar_type() == at::kLong && message.is_cpu() &&
                        message.is_contiguous() && message.dim() == 1 &&
                        message.numel() == elements_,
                    "expected a contiguous int64 tensor of ", elements_,
                    " elements on the CPU, as encode() gives it");
  const auto* numbers = message.const_data_ptr<int64_t>();
  const bool inside = std::all_of(numbers, numbers + elements_,
                                  [&](int64_t x) { return x >= 0 && x >> options_.bits == 0; });
  TORCH_CHECK_VALUE(inside, "expected whole numbers in [0, 2^", options_.bits,
                    "), as encode() gives them");
}

void DistributedNoise::add_(const at::Tensor& sum, const at::Tensor& sent) const {
  check_message(sum);
  check_message(sent);
  auto* into = sum.mutable_data_ptr<int64_t>();
  const auto* from = sent.const_data_ptr<int64_t>();
  const int64_t mask = (int64_t{1} << options_.bits) - 1;
  for (int64_t i = 0; i < elements_; ++i) into[i] = (into[i] + from[i]) & mask;
}

StateDict DistributedNoise::decode_mean(const at::Tensor& sum) const {
  const at::NoGradGuard no_grad;
  check_message(sum);
  const auto values = at::empty({elements_}, at::kDouble);
  const auto* numbers = sum.const_data_ptr<int64_t>();
  auto* out = values.mutable_data_ptr<double>();
  const int64_t half = int64_t{1} << (options_.bits - 1);
  const double scale = step_ / static_cast<double>(options_.clients);
  for (int64_t i = 0; i < elements_; ++i) {
    const int64_t centred = numbers[i] >= half ? numbers[i] - 2 * half : numbers[i];
    out[i] = static_cast<double>(centred) * scale;
  }
  StateDict mean;
  int64_t first = 0;
  for (const auto& [name, tensor] : like_) {
    mean[name] =
        values.narrow(0, first, tensor.numel()).reshape(tensor.sizes()).to(tensor.options());
    first += tensor.numel();
  }
  return mean;
}

double DistributedNoise::noise_multiplier(int64_t answered) const {
  check_count("answered", answered);
  const auto share = static_cast<double>(std::min(answered, options_.clients)) /
                     static_cast<double>(options_.clients);
  return options_.noise_multiplier * std::sqrt(share);
}

}  // namespace torchlore
