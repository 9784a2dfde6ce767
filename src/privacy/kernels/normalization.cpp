#include "normalization.hpp"

#include <ATen/Parallel.h>

#include <algorithm>

namespace torchlore::kernels {
namespace {

/// Where one example's sums go: to the gradients, or to scratch if only the norm is wanted.
float* sums_of(const PerExample& parameter, float* scratch, int64_t example, int64_t count) {
  return parameter.gradients != nullptr ? parameter.gradients + example * count : scratch;
}

void add_norm(const PerExample& parameter, const float* sums, int64_t example, int64_t count,
              const PerExampleKernels& kernels) {
  if (parameter.squared_norms == nullptr) return;
  parameter.squared_norms[example] += kernels.sum_squares(sums, count);
}

}  // namespace

void layer_norm_gradients(const NormalizedRows& rows, const PerExample& weight,
                          const PerExample& bias, detail::BufferPool& scratch,
                          const PerExampleKernels& kernels) {
  const auto& layout = rows.layout;
  at::parallel_for(0, layout.batch, 1, [&](int64_t begin, int64_t end) {
    const auto spare = scratch.empty({2 * rows.width});
    auto* room = spare.mutable_data_ptr<float>();
    for (int64_t b = begin; b < end; ++b) {
      auto* weights = sums_of(weight, room, b, rows.width);
      auto* biases = sums_of(bias, room + rows.width, b, rows.width);
      std::fill_n(weights, rows.width, 0.0F);
      std::fill_n(biases, rows.width, 0.0F);
      for (int64_t block = 0; block < layout.outer; ++block) {
        for (int64_t i = 0; i < layout.inner; ++i) {
          const int64_t row = layout.row(block, b, i);
          kernels.add_normalized(
              weights, biases, rows.gradient + row * rows.width, rows.input + row * rows.width,
              rows.mean != nullptr ? rows.mean[row] : 0, rows.rstd[row], rows.width);
        }
      }
      add_norm(weight, weights, b, rows.width, kernels);
      add_norm(bias, biases, b, rows.width, kernels);
    }
  });
}

void group_norm_gradients(const NormalizedChannels& c, const PerExample& weight,
                          const PerExample& bias, const PerExampleKernels& kernels) {
  const int64_t channels_of_group = std::max<int64_t>(c.channels / c.groups, 1);
  at::parallel_for(0, c.batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      double weight_squares = 0, bias_squares = 0;
      for (int64_t channel = 0; channel < c.channels; ++channel) {
        const int64_t row = b * c.channels + channel;
        const int64_t group = b * c.groups + channel / channels_of_group;
        double dot = 0, sum = 0;
        kernels.centered_dot(c.gradient + row * c.places, c.input + row * c.places, c.mean[group],
                             c.places, &dot, &sum);
        dot *= static_cast<double>(c.rstd[group]);
        weight_squares += dot * dot;
        bias_squares += sum * sum;
        if (weight.gradients != nullptr) weight.gradients[row] = static_cast<float>(dot);
        if (bias.gradients != nullptr) bias.gradients[row] = static_cast<float>(sum);
      }
      if (weight.squared_norms != nullptr) weight.squared_norms[b] += weight_squares;
      if (bias.squared_norms != nullptr) bias.squared_norms[b] += bias_squares;
    }
  });
}

}  // namespace torchlore::kernels
