#include "momentum.hpp"

#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>

#include <tuple>

namespace torchlore::schedule::detail {

double* momentum_of(torch::optim::OptimizerOptions& options) {
  using namespace torch::optim;
  if (auto* adamw = dynamic_cast<AdamWOptions*>(&options)) return &std::get<0>(adamw->betas());
  if (auto* adam = dynamic_cast<AdamOptions*>(&options)) return &std::get<0>(adam->betas());
  if (auto* sgd = dynamic_cast<SGDOptions*>(&options)) return &sgd->momentum();
  if (auto* rmsprop = dynamic_cast<RMSpropOptions*>(&options)) return &rmsprop->momentum();
  return nullptr;
}

bool has_momentum(const torch::optim::OptimizerOptions& options) {
  using namespace torch::optim;
  return dynamic_cast<const AdamWOptions*>(&options) ||
         dynamic_cast<const AdamOptions*>(&options) || dynamic_cast<const SGDOptions*>(&options) ||
         dynamic_cast<const RMSpropOptions*>(&options);
}

}  // namespace torchlore::schedule::detail
