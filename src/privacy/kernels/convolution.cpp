#include "convolution.hpp"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>

namespace torchlore::kernels {
namespace {

/// How a weight gradient's row [kernel height, kernel width, group_in] is cut into blocks. A tap is a
/// place in the kernel.
struct Blocks {
  explicit Blocks(const ConvolutionImages& c)
      : columns(c.group_in() * c.kernel.width < kReadAhead),
        taps(columns                 ? c.kernel.height * c.kernel.width
             : c.dilation.width == 1 ? c.kernel.width
                                     : 1),
        width(taps * c.group_in()),
        count(c.kernel.height * c.kernel.width / taps) {}

  bool columns;   ///< so few channels that a kernel's row does not fill a vector
  int64_t taps;   ///< of a block: the whole kernel, one row, or a single place
  int64_t width;  ///< elements of a block's row
  int64_t count;  ///< of blocks
};

/// One thread's padded image in channels-last order, and its columns.
class Workspace {
 public:
  Workspace(const ConvolutionImages& c, const Blocks& blocks, detail::BufferPool& scratch,
            const PerExampleKernels& kernels)
      : c_(c),
        kernels_(kernels),
        blocks_(blocks),
        channels_(c.group_in()),
        row_((c.in.width + 2 * c.padding.width) * channels_),
        image_(scratch.empty({(c.in.height + 2 * c.padding.height) * row_ + kReadAhead})),
        columns_(scratch.empty(
            {blocks.columns ? c.out.height * c.out.width * blocks.width + kReadAhead : 0})) {
    // The padding stays zero; so does what is read ahead.
    std::fill_n(image_.mutable_data_ptr<float>(), image_.numel(), 0.0F);
    std::fill_n(columns_.mutable_data_ptr<float>(), columns_.numel(), 0.0F);
  }

  /// Takes in one group's channels of an image.
  void load(int64_t example, int64_t group) {
    copy_image(c_.input.data + example * c_.input.strides[0] +
               group * channels_ * c_.input.strides[1]);
    if (blocks_.columns) make_columns();
  }

  /// The right side of a block's sum of outer products.
  void set_right(OuterSum& sum, int64_t block) const {
    if (blocks_.columns) {
      sum.right = columns_.const_data_ptr<float>();
      sum.right_run = c_.out.width * blocks_.width;
      sum.right_step = blocks_.width;
      return;
    }
    const int64_t tap = block * blocks_.taps;
    sum.right = image_.const_data_ptr<float>() + place(0, 0, tap);
    sum.right_run = c_.stride.height * row_;
    sum.right_step = c_.stride.width * channels_;
  }

 private:
  /// Where the channels lie that a tap meets at an output's place.
  int64_t place(int64_t y, int64_t x, int64_t tap) const {
    const int64_t row = y * c_.stride.height + tap / c_.kernel.width * c_.dilation.height;
    const int64_t column = x * c_.stride.width + tap % c_.kernel.width * c_.dilation.width;
    return row * row_ + column * channels_;
  }

  void copy_image(const float* from) {
    const auto& strides = c_.input.strides;
    float* to =
        image_.mutable_data_ptr<float>() + c_.padding.height * row_ + c_.padding.width * channels_;
    for (int64_t y = 0; y < c_.in.height; ++y, from += strides[2], to += row_) {
      if (strides[3] == 1) {
        kernels_.interleave(from, strides[1], channels_, c_.in.width, to);
        continue;
      }
      for (int64_t x = 0; x < c_.in.width; ++x) {
        for (int64_t i = 0; i < channels_; ++i) {
          to[x * channels_ + i] = from[x * strides[3] + i * strides[1]];
        }
      }
    }
  }

  /// Neighbouring taps are copied together: fewer than 16 floats, but always 16, which is one
  /// instruction or two. What is too much is overwritten by the next, or lies in what is read ahead.
  void make_columns() {
    const float* image = image_.const_data_ptr<float>();
    float* to = columns_.mutable_data_ptr<float>();
    const int64_t together = c_.dilation.width == 1 ? c_.kernel.width : 1;
    for (int64_t y = 0; y < c_.out.height; ++y) {
      for (int64_t x = 0; x < c_.out.width; ++x) {
        for (int64_t tap = 0; tap < blocks_.taps; tap += together, to += together * channels_) {
          std::memcpy(to, image + place(y, x, tap), kReadAhead * sizeof(float));
        }
      }
    }
  }

  const ConvolutionImages& c_;
  const PerExampleKernels& kernels_;
  const Blocks& blocks_;
  int64_t channels_;
  int64_t row_;  ///< floats of a padded row
  at::Tensor image_;
  at::Tensor columns_;
};

/// Σ over the places of one channel's gradient.
double channel_sum(const ConvolutionImages& c, const float* g, const PerExampleKernels& k) {
  const auto& strides = c.gradient.strides;
  double sum = 0, unused = 0;
  if (strides[3] == 1 && strides[2] == c.out.width) {
    k.centered_dot(g, g, 0, c.out.height * c.out.width, &unused, &sum);
    return sum;
  }
  for (int64_t y = 0; y < c.out.height; ++y) {
    for (int64_t x = 0; x < c.out.width; ++x) {
      sum += static_cast<double>(g[y * strides[2] + x * strides[3]]);
    }
  }
  return sum;
}

void bias_of(const ConvolutionImages& c, int64_t example, const PerExample& bias,
             const PerExampleKernels& k) {
  double squares = 0;
  for (int64_t channel = 0; channel < c.out_channels; ++channel) {
    const float* g =
        c.gradient.data + example * c.gradient.strides[0] + channel * c.gradient.strides[1];
    const double sum = channel_sum(c, g, k);
    squares += sum * sum;
    if (bias.gradients == nullptr) continue;
    bias.gradients[example * c.out_channels + channel] = static_cast<float>(sum);
  }
  if (bias.squared_norms != nullptr) bias.squared_norms[example] += squares;
}

void weight_of(const ConvolutionImages& c, const Blocks& blocks, int64_t example,
               const PerExample& weight, Workspace& workspace, const PerExampleKernels& k) {
  const auto& strides = c.gradient.strides;
  OuterSum sum{.rows = c.group_out(),
               .columns = blocks.width,
               .runs = c.out.height,
               .length = c.out.width,
               .left_row = strides[1],
               .left_run = strides[2],
               .left_step = strides[3],
               .product_row = blocks.count * blocks.width};
  double squares = 0;
  for (int64_t group = 0; group < c.groups; ++group) {
    workspace.load(example, group);
    sum.left = c.gradient.data + example * strides[0] + group * c.group_out() * strides[1];
    for (int64_t block = 0; block < blocks.count; ++block) {
      workspace.set_right(sum, block);
      if (weight.gradients != nullptr) {
        sum.product = weight.gradients + example * c.weight_count() +
                      group * c.group_out() * sum.product_row + block * blocks.width;
      }
      squares += k.outer_sum(sum);
    }
  }
  if (weight.squared_norms != nullptr) weight.squared_norms[example] += squares;
}

}  // namespace

void convolution_gradients(const ConvolutionImages& images, const PerExample& weight,
                           const PerExample& bias, detail::BufferPool& scratch,
                           const PerExampleKernels& kernels) {
  const Blocks blocks(images);
  at::parallel_for(0, images.batch, 1, [&](int64_t begin, int64_t end) {
    Workspace workspace(images, blocks, scratch, kernels);
    for (int64_t b = begin; b < end; ++b) {
      if (weight.wanted()) weight_of(images, blocks, b, weight, workspace, kernels);
      if (bias.wanted()) bias_of(images, b, bias, kernels);
    }
  });
}

}  // namespace torchlore::kernels
