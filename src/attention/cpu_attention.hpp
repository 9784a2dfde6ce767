#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

#include "attention_op.hpp"

/// Between LibTorch's tensors and the compiled block kernels.
namespace torchlore::kernels {
struct AttentionStatistics;
}

namespace torchlore::attention {

/// Whether the compiled kernels serve these inputs.
bool runs_on_cpu_kernels(const Inputs& inputs);

/// Output, in memory ordered as query is, and log-sum-exp, over the pairs that `tiles` show. Counts
/// tiles if told where.
std::tuple<at::Tensor, at::Tensor> cpu_forward(const Inputs& inputs, const Settings& settings,
                                               const TileLayouts& tiles,
                                               kernels::AttentionStatistics* statistics = nullptr);

/// The gradients of query, key and value, each in memory ordered as the tensor is. `output` and
/// `log_sum_exp` may be those over more pairs: then it is the part of the gradients that `tiles` give.
Gradients cpu_backward(const at::Tensor& grad_output, const at::Tensor& grad_log_sum_exp,
                       const at::Tensor& output, const at::Tensor& log_sum_exp,
                       const Inputs& inputs, const Settings& settings, const TileLayouts& tiles,
                       kernels::AttentionStatistics* statistics = nullptr);

}  // namespace torchlore::attention
