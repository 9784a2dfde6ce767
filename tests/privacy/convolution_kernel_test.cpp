#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>

#include "../../src/privacy/kernels/convolution.hpp"
#include "per_example_kernel_test.hpp"

namespace torchlore {
namespace {

using kernels::Extent;

/// What a test varies; the rest is as small as it may be.
struct Case {
  int64_t in = 3;
  int64_t out = 5;
  int64_t groups = 1;
  Extent size = {.height = 7, .width = 9};
  Extent kernel = {.height = 3, .width = 3};
  Extent stride = {};
  Extent padding = {.height = 1, .width = 1};
  Extent dilation = {};
  bool channels_last = false;
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  const auto pair = [&](const char* name, const Extent& e) {
    out << ", " << name << " " << e.height << "x" << e.width;
  };
  out << c.in << " -> " << c.out << " in " << c.groups << " groups";
  pair("size", c.size);
  pair("kernel", c.kernel);
  pair("stride", c.stride);
  pair("padding", c.padding);
  pair("dilation", c.dilation);
  return out << (c.channels_last ? ", channels last" : "");
}

kernels::Images images(const at::Tensor& t) {
  kernels::Images result{.data = t.const_data_ptr<float>()};
  std::copy_n(t.strides().begin(), 4, result.strides.begin());
  return result;
}

class ConvolutionKernelTest : public testing::PerExampleKernelTest {
 protected:
  void check(const Case& c) {
    SCOPED_TRACE(::testing::Message() << c);
    constexpr int64_t batch = 3;
    const std::array<int64_t, 2> stride{c.stride.height, c.stride.width},
        padding{c.padding.height, c.padding.width}, dilation{c.dilation.height, c.dilation.width};
    const auto format =
        c.channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
    const auto x = at::randn({batch, c.in, c.size.height, c.size.width}).contiguous(format);
    const auto w =
        at::zeros({c.out, c.in / c.groups, c.kernel.height, c.kernel.width}, at::kDouble);
    const auto y = at::conv2d(x.to(at::kDouble), w, {}, stride, padding, dilation, c.groups);
    const auto g = at::randn(y.sizes()).contiguous(format);
    const kernels::ConvolutionImages all{.batch = batch,
                                         .in_channels = c.in,
                                         .out_channels = c.out,
                                         .groups = c.groups,
                                         .in = c.size,
                                         .out = {y.size(2), y.size(3)},
                                         .kernel = c.kernel,
                                         .stride = c.stride,
                                         .padding = c.padding,
                                         .dilation = c.dilation,
                                         .input = images(x),
                                         .gradient = images(g)};
    ASSERT_EQ(all.weight_count(), w.numel());
    Gradients weight(batch, w.numel()), bias(batch, c.out);
    kernels::convolution_gradients(all, weight.all(), bias.all(), scratch, *k);
    Gradients weight_norms(batch, 0), bias_norms(batch, 0);
    kernels::convolution_gradients(all, weight_norms.norms_only(), bias_norms.norms_only(), scratch,
                                   *k);
    for (int64_t b = 0; b < batch; ++b) {
      const auto [dx, dw, db] = at::convolution_backward(
          g.narrow(0, b, 1).to(at::kDouble), x.narrow(0, b, 1).to(at::kDouble), w,
          at::IntArrayRef{c.out}, stride, padding, dilation, false, {0, 0}, c.groups,
          {false, true, true});
      weight.expect(b, dw.permute({0, 2, 3, 1}));
      weight_norms.expect_norm(b, dw);
      bias.expect(b, db);
      bias_norms.expect_norm(b, db);
    }
  }
};

TEST_P(ConvolutionKernelTest, EqualsLibTorchInDoubleForEveryNumberOfChannels) {
  for (const int64_t in : {1, 2, 5, 6, 7, 16, 17, 33}) {
    for (const int64_t out : {1, 4, 7, 8, 9, 17}) check({.in = in, .out = out});
  }
}

TEST_P(ConvolutionKernelTest, KnowsEveryStridePaddingAndDilation) {
  for (const int64_t in : {2, 8, 20}) {
    for (const Extent stride : {Extent{2, 1}, Extent{1, 3}, Extent{2, 2}}) {
      for (const Extent padding : {Extent{0, 0}, Extent{2, 1}}) {
        for (const Extent dilation : {Extent{1, 1}, Extent{2, 1}, Extent{1, 2}, Extent{2, 3}}) {
          check({.in = in, .stride = stride, .padding = padding, .dilation = dilation});
        }
      }
    }
  }
}

TEST_P(ConvolutionKernelTest, KnowsEveryKernel) {
  for (const int64_t in : {1, 20}) {
    for (const Extent kernel : {Extent{1, 1}, Extent{1, 5}, Extent{5, 1}, Extent{7, 9}}) {
      check({.in = in, .kernel = kernel, .padding = {0, 0}});
      check({.in = in, .kernel = kernel, .padding = {3, 4}});
    }
  }
  check({.size = {1, 50}, .kernel = {1, 4}, .stride = {1, 2}, .padding = {0, 3}});  // 1-d
  check({.in = 24, .size = {1, 50}, .kernel = {1, 4}, .padding = {0, 3}});
}

TEST_P(ConvolutionKernelTest, KeepsGroupsApart) {
  for (const int64_t groups : {2, 4}) {
    check({.in = 8, .out = 12, .groups = groups});
    check({.in = 64, .out = 4, .groups = groups, .stride = {2, 2}, .dilation = {1, 2}});
  }
  check({.in = 6, .out = 6, .groups = 6});  // depthwise
  check({.in = 6, .out = 12, .groups = 6});
}

TEST_P(ConvolutionKernelTest, ReadsChannelsLast) {
  check({.in = 2, .out = 9, .channels_last = true});
  check({.in = 20, .out = 9, .stride = {2, 2}, .channels_last = true});
}

TEST_P(ConvolutionKernelTest, StaysAccurateOverManyPlaces) {
  check({.in = 8, .out = 8, .size = {80, 70}});
  check({.in = 1, .out = 8, .size = {1, 5000}, .kernel = {1, 3}, .padding = {0, 1}});
}

INSTANTIATE_TEST_SUITE_P(AllSets, ConvolutionKernelTest,
                         ::testing::Values("portable", "avx2", "avx512"));

}  // namespace
}  // namespace torchlore
