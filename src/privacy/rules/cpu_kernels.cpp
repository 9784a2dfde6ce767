#include "cpu_kernels.hpp"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <utility>

#include "../../core/buffer_pool.hpp"
#include "../kernels/convolution.hpp"
#include "../kernels/embedding.hpp"
#include "../kernels/linear.hpp"
#include "../kernels/normalization.hpp"
#include "../kernels/weighted_sum.hpp"

namespace torchlore::detail {
namespace {

kernels::ExampleLayout rows_of(const ExampleLayout& layout) {
  return {.outer = layout.outer, .batch = layout.examples, .inner = layout.inner};
}

/// Room to work in, kept by the thread from layer to layer and from step to step.
BufferPool& scratch() {
  static thread_local BufferPool pool(16 << 20);
  return pool;
}

at::Tensor no_norms(int64_t examples) { return at::zeros({examples}, at::kDouble); }

/// [B, …] whose examples lie one after the other, in any order of the other dimensions: what is read
/// in the order of memory.
bool is_dense_by_example(const at::Tensor& gradients) {
  if (gradients.numel() == 0) return gradients.is_contiguous();
  return gradients.size(0) == 1 ? gradients[0].is_non_overlapping_and_dense()
                                : gradients.is_non_overlapping_and_dense() &&
                                      gradients.stride(0) == gradients.numel() / gradients.size(0);
}

InstantiatedGradients room_for(int64_t examples, at::IntArrayRef sizes, bool is_kept) {
  std::vector<int64_t> all{examples};
  all.insert(all.end(), sizes.begin(), sizes.end());
  return {.gradients = is_kept ? at::empty(all, at::kFloat) : at::Tensor(),
          .squares = no_norms(examples)};
}

kernels::PerExample target(const InstantiatedGradients& to) {
  return {.squared_norms = to.squares.mutable_data_ptr<double>(),
          .gradients = to.gradients.defined() ? to.gradients.mutable_data_ptr<float>() : nullptr};
}

/// [N, C, W] or [N, C, H, W].
kernels::Images images(const at::Tensor& value) {
  kernels::Images result{.data = value.const_data_ptr<float>()};
  const auto strides = value.strides();
  std::copy(strides.end() - 1, strides.end(), result.strides.end() - 1);
  std::copy(strides.begin(), strides.begin() + 2, result.strides.begin());
  result.strides[2] = value.dim() == 4 ? strides[2] : 0;
  return result;
}

/// The last one or two of a list.
kernels::Extent extent(at::IntArrayRef values, size_t first, int64_t otherwise) {
  const auto list = values.slice(first);
  return {.height = list.size() == 2 ? list[0] : otherwise, .width = list.back()};
}

}  // namespace

bool is_for_kernels(const at::Tensor& value) {
  return value.defined() && value.is_cpu() && value.layout() == at::kStrided &&
         value.scalar_type() == at::kFloat && !value.is_neg();
}

std::optional<at::Tensor> squared_norms_by_kernel(const at::Tensor& gradients) {
  if (!is_for_kernels(gradients) || !is_dense_by_example(gradients)) return std::nullopt;
  const int64_t examples = gradients.size(0);
  auto squares = no_norms(examples);
  if (gradients.numel() == 0) return squares;
  const int64_t count = gradients.numel() / examples;
  auto* to = squares.mutable_data_ptr<double>();
  const auto* from = gradients.const_data_ptr<float>();
  const auto sum = kernels::per_example_kernels().sum_squares;
  const int64_t grain = std::max<int64_t>(1, 16'384 / count);
  at::parallel_for(0, examples, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      to[i] = sum(from + i * count, count);
    }
  });
  return squares;
}

std::optional<at::Tensor> weighted_sum_by_kernel(const at::Tensor& gradients,
                                                 const at::Tensor& factors) {
  if (!is_for_kernels(gradients) || !is_dense_by_example(gradients)) return std::nullopt;
  const auto weights = factors.to(at::kFloat).contiguous();
  auto sum = at::empty_strided(gradients.sizes().slice(1), gradients.strides().slice(1),
                               gradients.options())
                 .zero_();
  kernels::add_weighted_sum(gradients.const_data_ptr<float>(), weights.const_data_ptr<float>(),
                            gradients.size(0), sum.numel(), sum.mutable_data_ptr<float>());
  return sum;
}

std::optional<InstantiatedGradients> products_by_kernel(const at::Tensor& rows,
                                                        const at::Tensor& gradient,
                                                        const ExampleLayout& layout, bool is_kept) {
  if (!is_for_kernels(rows) || !is_for_kernels(gradient)) return std::nullopt;
  const auto x = rows.contiguous(), g = gradient.contiguous();
  const int64_t in = x.size(1), out = g.size(1);
  auto result = room_for(layout.examples, {out, in}, is_kept);
  kernels::linear_gradients({.layout = rows_of(layout),
                             .input = x.const_data_ptr<float>(),
                             .gradient = g.const_data_ptr<float>(),
                             .in = in,
                             .out = out},
                            target(result), {}, scratch());
  return result;
}

std::optional<InstantiatedGradients> row_sums_by_kernel(const at::Tensor& gradient,
                                                        const ExampleLayout& layout) {
  if (!is_for_kernels(gradient)) return std::nullopt;
  const auto g = gradient.contiguous();
  auto result = room_for(layout.examples, {g.size(1)}, true);
  kernels::linear_gradients(
      {.layout = rows_of(layout), .gradient = g.const_data_ptr<float>(), .out = g.size(1)}, {},
      target(result), scratch());
  return result;
}

std::optional<InstantiatedGradients> convolution_by_kernel(const TapeNode& node,
                                                           at::IntArrayRef weight,
                                                           const ExampleLayout& layout,
                                                           const at::Tensor& gradient,
                                                           const at::Tensor& input, bool is_kept) {
  if (!is_for_kernels(gradient) || !is_for_kernels(input)) return std::nullopt;
  if (layout.dim != 0 || layout.per_example() != 1 || weight.size() > 4) return std::nullopt;
  const auto list = [&](const char* name) -> at::IntArrayRef {
    return node.attribute<std::vector<int64_t>>(name);
  };
  // A transposed convolution is one from its gradient to its input.
  const bool is_transposed = node.attribute<bool>("transposed");
  const auto& x = is_transposed ? gradient : input;
  const auto& g = is_transposed ? input : gradient;
  const kernels::ConvolutionImages all{.batch = layout.examples,
                                       .in_channels = x.size(1),
                                       .out_channels = g.size(1),
                                       .groups = node.attribute<int64_t>("groups"),
                                       .in = extent(x.sizes(), 2, 1),
                                       .out = extent(g.sizes(), 2, 1),
                                       .kernel = extent(weight, 2, 1),
                                       .stride = extent(list("stride"), 0, 1),
                                       .padding = extent(list("padding"), 0, 0),
                                       .dilation = extent(list("dilation"), 0, 1),
                                       .input = images(x),
                                       .gradient = images(g)};
  auto result = room_for(layout.examples,
                         {weight[0], all.kernel.height, all.kernel.width, weight[1]}, is_kept);
  kernels::convolution_gradients(all, target(result), {}, scratch());
  if (!is_kept) return result;
  result.gradients = result.gradients.permute({0, 1, 4, 2, 3});
  if (weight.size() == 3) result.gradients = result.gradients.squeeze(3);
  return result;
}

std::optional<std::vector<InstantiatedGradients>> norm_by_kernel(const TapeNode& node,
                                                                 const ExampleLayout& layout,
                                                                 const at::Tensor& gradient) {
  const auto saved = node.saved_tensor("input");
  const auto rstd = node.saved_tensor("rstd");
  const auto mean = node.op == TapeOp::rms_norm ? at::Tensor() : node.saved_tensor("mean");
  if (!is_for_kernels(gradient) || !is_for_kernels(saved) || !is_for_kernels(rstd) ||
      (mean.defined() && !is_for_kernels(mean))) {
    return std::nullopt;
  }
  const auto x = saved.contiguous(), g = gradient.contiguous(), r = rstd.contiguous();
  const auto m = mean.defined() ? mean.contiguous() : at::Tensor();
  const bool is_group = node.op == TapeOp::group_norm;
  if (is_group && (layout.dim != 0 || layout.per_example() != 1)) return std::nullopt;
  if (is_group) {
    const int64_t channels = x.size(1);
    std::vector<InstantiatedGradients> result{room_for(layout.examples, {channels}, true),
                                              room_for(layout.examples, {channels}, true)};
    kernels::group_norm_gradients(
        {.batch = layout.examples,
         .channels = channels,
         .groups = r.size(1),
         .places = channels == 0 ? 0 : x.numel() / (layout.examples * channels),
         .input = x.const_data_ptr<float>(),
         .gradient = g.const_data_ptr<float>(),
         .mean = m.const_data_ptr<float>(),
         .rstd = r.const_data_ptr<float>()},
        target(result[0]), target(result[1]));
    return result;
  }
  // Statistics are over all dimensions but those where `rstd` has a size.
  int64_t kept = 0;
  while (kept < r.dim() && r.size(r.dim() - 1 - kept) == 1) ++kept;
  const int64_t width = r.numel() == 0 ? 0 : x.numel() / r.numel();
  if (x.dim() != r.dim() || kept == 0 || width == 0) return std::nullopt;
  const auto sizes = x.sizes().slice(static_cast<size_t>(x.dim() - kept));
  if (c10::multiply_integers(sizes) != width || layout.dim >= x.dim() - kept) return std::nullopt;
  std::vector<InstantiatedGradients> result{room_for(layout.examples, sizes, true),
                                            room_for(layout.examples, sizes, true)};
  kernels::layer_norm_gradients({.layout = rows_of(flattened(x.sizes(), layout, kept)),
                                 .input = x.const_data_ptr<float>(),
                                 .gradient = g.const_data_ptr<float>(),
                                 .mean = m.defined() ? m.const_data_ptr<float>() : nullptr,
                                 .rstd = r.const_data_ptr<float>(),
                                 .width = width},
                                target(result[0]), target(result[1]), scratch());
  return result;
}

std::optional<at::Tensor> embedding_norms_by_kernel(const at::Tensor& tokens,
                                                    const at::Tensor& gradient,
                                                    const ExampleLayout& layout) {
  if (!is_for_kernels(gradient)) return std::nullopt;
  const auto ids = tokens.contiguous(), g = gradient.contiguous();
  auto squares = no_norms(layout.examples);
  kernels::embedding_norms({.layout = rows_of(layout),
                            .tokens = ids.const_data_ptr<int64_t>(),
                            .gradient = g.const_data_ptr<float>(),
                            .width = g.size(1)},
                           squares.mutable_data_ptr<double>(), scratch());
  return squares;
}

bool add_embedding_by_kernel(const at::Tensor& tokens, const at::Tensor& gradient,
                             const ExampleLayout& layout, const at::Tensor& factors,
                             const at::Tensor& table) {
  if (!is_for_kernels(gradient)) return false;
  const auto ids = tokens.contiguous(), g = gradient.contiguous();
  const auto weights = factors.to(at::kFloat).contiguous();
  kernels::add_embedding_gradients({.layout = rows_of(layout),
                                    .tokens = ids.const_data_ptr<int64_t>(),
                                    .gradient = g.const_data_ptr<float>(),
                                    .width = g.size(1)},
                                   weights.const_data_ptr<float>(),
                                   table.mutable_data_ptr<float>());
  return true;
}

}  // namespace torchlore::detail
