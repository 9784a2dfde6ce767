#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "torchlore/core/bytes.hpp"

namespace torch::nn {
class Module;
}

/// Gradients of single examples, of a model whose source is not touched.
namespace torchlore {

/// How a layer's norms come about. All give the same numbers, at other costs.
enum class PerSampleMode : uint8_t {
  automatic,     ///< for each layer the cheapest that fits into `PerSampleOptions::keep`
  instantiated,  ///< the gradients are formed, and kept where they are needed again
  ghost,         ///< from inner products of inputs and output gradients, where an op has such a way
  recomputed     ///< the gradients are formed, measured and dropped
};

/// Settings of all that works with gradients of single examples.
struct PerSampleOptions {
  /// See `PerSampleMode`.
  PerSampleMode mode = PerSampleMode::automatic;
  /// How much memory the gradients that are kept until their factors are known may take together;
  /// used by `PerSampleMode::automatic`. Those of small parameters (biases, norms) and of parameters
  /// with several uses are kept in any case.
  Bytes keep = MiB(512);
};

/// The gradients of one parameter, one for each example.
struct PerSampleGradient {
  std::string name = {};      ///< the parameter's name in the model
  at::Tensor parameter = {};  ///< the parameter itself
  at::Tensor gradients = {};  ///< [B, *shape of the parameter], in its dtype
};

/// The norm of each example's gradient, over all parameters together.
///
/// Equal to what a loop would find that runs the model and `backward` for one example at a time, but
/// from one forward of the whole batch and one backward, without weight gradients:
/// ```cpp
/// const auto losses = F::cross_entropy(model->forward(x), y,
///                                      F::CrossEntropyFuncOptions().reduction(torch::kNone));
/// const auto norms = torchlore::per_sample_norms(losses, *model);
/// ```
/// The model must keep examples apart: batch norm in training mode is refused by name, and anything
/// else that mixes them on the way of the gradients is found at the first call for a graph, by NaN
/// sent through a few more backward passes. What is mixed where no gradient flows (a detached mean of
/// the batch) cannot be seen here.
///
/// Where the example lies in each value is found in the same way, and remembered per thread for graphs
/// of the same ops; batches of other sizes need no new search. Parameters in ops that have no rule
/// get exact gradients too, by one backward pass for each example; a warning, once per process, names
/// them.
/// @param losses the loss of each example [B], computed by one forward; its graph stays as it is.
/// @param model  whose parameters are looked at; frozen ones are left out, and tied ones count once.
/// @param options see PerSampleOptions; `keep` does not matter here.
/// @return [B] float64, on the losses' device. An example whose loss or gradient is not finite has a
///         norm that is not finite; the others are not touched by it.
/// @throws c10::ValueError for losses that are not [B], a model without trainable parameters, losses
///         that depend on a leaf that is no parameter of the model; c10::NotImplementedError for what
///         mixes examples, and for parameters with hooks; c10::Error if a backward or `add_clipped_sum` has used the graph.
/// @note Cost: one backward without weight gradients, plus about as much per layer. Hooks that users
///       put on tensors run, also in the search. Call it outside of autocast. Host syncs: those of
///       the search; later none.
/// Source: Goodfellow (2015), arXiv:1510.01799; Li et al. (2021), arXiv:2110.05679.
at::Tensor per_sample_norms(const at::Tensor& losses, const torch::nn::Module& model,
                            const PerSampleOptions& options = {});

/// The gradients themselves. Takes, throws and leaves alone what `per_sample_norms` does.
/// @return one entry for each trainable parameter that the losses depend on, in the model's order.
/// @note Memory: B times the parameters. For clipping take `add_clipped_sum`, which does not need it.
std::vector<PerSampleGradient> per_sample_grads(const at::Tensor& losses,
                                                const torch::nn::Module& model,
                                                const PerSampleOptions& options = {});

}  // namespace torchlore
