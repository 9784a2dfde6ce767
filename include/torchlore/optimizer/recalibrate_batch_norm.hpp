#pragma once

#include <c10/util/FunctionRef.h>

#include <cstdint>

namespace torch::nn {
class Module;
}

namespace torchlore {

/// Measures the statistics of a model's batch norms anew, as they are for its present weights:
/// averaged weights, or weights that were changed by hand.
///
/// ```cpp
/// const auto averaged = ema.swap();
/// torchlore::recalibrate_batch_norm(*model, [&] {
///   for (auto& batch : *loader) model->forward(batch.data);
/// });
/// ```
/// Resets the running mean and variance of every BatchNorm1d, 2d and 3d that tracks them, and calls
/// `forward` once, without gradients, the model in training mode: each becomes the plain mean over
/// all batches. Then every module has its mode and every batch norm its momentum back. As PyTorch's
/// `torch.optim.swa_utils.update_bn`, but for modules that were in evaluation mode by themselves:
/// they are so again afterwards.
/// @param forward runs the model on as many batches as are wanted; some hundred samples are enough.
/// @return how many batch norms have new statistics; 0, without a call, if the model has none. One
///         that no batch reached keeps its old statistics.
/// @throws c10::ValueError if no batch reached any; and whatever `forward` throws. The old
///         statistics are back then.
/// @note Host syncs: one per batch and batch norm, which LibTorch makes to count batches.
int64_t recalibrate_batch_norm(torch::nn::Module& model, c10::function_ref<void()> forward);

}  // namespace torchlore
