#include "torchlore/privacy/per_sample.hpp"

#include <ATen/Functions.h>

#include "per_sample_pass.hpp"

namespace torchlore {

using detail::PassPurpose;
using detail::PerSamplePass;

at::Tensor per_sample_norms(const at::Tensor& losses, const torch::nn::Module& model,
                            const PerSampleOptions& options) {
  PerSamplePass pass(losses, detail::trainable_parameters(model), options, PassPurpose::norms);
  pass.run();
  auto squares = at::zeros({pass.examples()}, losses.options().dtype(at::kDouble));
  for (size_t i = 0; i < pass.size(); ++i) squares.add_(pass.squares(i));
  return squares.sqrt_();
}

std::vector<PerSampleGradient> per_sample_grads(const at::Tensor& losses,
                                                const torch::nn::Module& model,
                                                const PerSampleOptions& options) {
  PerSamplePass pass(losses, detail::trainable_parameters(model), options, PassPurpose::gradients);
  pass.run();
  std::vector<PerSampleGradient> result;
  for (size_t i = 0; i < pass.size(); ++i) {
    result.push_back({pass.name(i), pass.parameter(i), pass.gradients(i)});
  }
  return result;
}

}  // namespace torchlore
