#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "kernels/shifted_kernels.hpp"

/// Attention in which each query sees the keys at a short list of distances, whatever the length.
namespace torchlore::attention {

/// Query i sees the keys i + shift[a] that there are. All different, in descending order: nearest
/// first, where no key comes after its query.
using KeyShifts = std::vector<int64_t>;

/// What attention's forward gives.
struct AttentionOutput {
  at::Tensor out;          ///< [B, H, T, E], dtype of the query
  at::Tensor log_sum_exp;  ///< [B, H, T] float32 (float64 for such inputs), contiguous
};

/// What attention's backward starts from, beyond q, k and v.
struct AttentionSaved {
  at::Tensor out;
  at::Tensor log_sum_exp;
  at::Tensor grad_out;
  at::Tensor grad_log_sum_exp = {};  ///< or undefined, for 0
};

struct AttentionInputGradients {
  at::Tensor query;
  at::Tensor key;
  at::Tensor value;
};

/// Attention along shifts on the CPU. Low precision is converted to float32 head by head.
///
/// The table of weights, [shifts, T] for some heads at a time, is the only memory beyond that.
/// @param q [B, H, T, D]; any strides; float16, bfloat16, float32 or float64, as k and v.
/// @param k [B, H_k, S, D], H % H_k == 0. @param v [B, H_k, S, E].
/// @param kernels the instruction set, or nullptr for the best one.
/// @note O(T · shifts · (D + E)); the same bits for any number of threads.
AttentionOutput shifted_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                const KeyShifts& shifts, double scale,
                                const kernels::ShiftedKernels* kernels = nullptr);

/// Gradients of all three. The saved output and log-sum-exp may be those of attention over more keys,
/// of which the shifts show a part: what comes back is that part of the gradients.
AttentionInputGradients shifted_backward(const at::Tensor& q, const at::Tensor& k,
                                         const at::Tensor& v, const KeyShifts& shifts, double scale,
                                         const AttentionSaved& saved,
                                         const kernels::ShiftedKernels* kernels = nullptr);

}  // namespace torchlore::attention
