#pragma once

#include <array>
#include <cstdint>

#include "../../core/buffer_pool.hpp"
#include "example_layout.hpp"

namespace torchlore::kernels {

/// Two numbers, of height and of width. A 1-d convolution has height 1.
struct Extent {
  int64_t height = 1;
  int64_t width = 1;
};

/// A tensor [B, C, H, W] in any memory format.
struct Images {
  const float* data = nullptr;
  std::array<int64_t, 4> strides = {};  ///< in floats
};

/// The input of a convolution with zero padding, and the loss's gradients by its output: one image is
/// one example. A transposed convolution is the same with both images exchanged.
struct ConvolutionImages {
  int64_t batch = 0;
  int64_t in_channels = 0;
  int64_t out_channels = 0;
  int64_t groups = 1;
  Extent in = {};
  Extent out = {};
  Extent kernel = {};
  Extent stride = {};
  Extent padding = {.height = 0, .width = 0};
  Extent dilation = {};
  Images input = {};
  Images gradient = {};

  int64_t group_in() const { return in_channels / groups; }
  int64_t group_out() const { return out_channels / groups; }
  /// Elements of the weight.
  int64_t weight_count() const { return out_channels * group_in() * kernel.height * kernel.width; }
};

/// Per-example gradients of a convolution's weight, in channels-last order: [out, kernel height, kernel
/// width, in / groups], and bias [out]. Padded images in the same order need no columns: the channels
/// that a row of the kernel meets are neighbours. Where these are few, columns are made after all.
/// @note O(out places · weight) per example; scratch per thread: a padded image, and columns.
void convolution_gradients(const ConvolutionImages& images, const PerExample& weight,
                           const PerExample& bias, detail::BufferPool& scratch,
                           const PerExampleKernels& kernels = per_example_kernels());

}  // namespace torchlore::kernels
