#include "momentum.hpp"

#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>

#include <tuple>
#include <typeinfo>

namespace torchlore::schedule::detail {

namespace {

/// A cast that compares types first: a dynamic_cast that fails costs as much as the whole schedule.
template <typename Options>
Options* as(torch::optim::OptimizerOptions& options) {
  if (typeid(options) == typeid(Options)) return static_cast<Options*>(&options);
  return nullptr;
}

}  // namespace

double* momentum_of(torch::optim::OptimizerOptions& options) {
  using namespace torch::optim;
  if (auto* adamw = as<AdamWOptions>(options)) return &std::get<0>(adamw->betas());
  if (auto* adam = as<AdamOptions>(options)) return &std::get<0>(adam->betas());
  if (auto* sgd = as<SGDOptions>(options)) return &sgd->momentum();
  if (auto* rmsprop = as<RMSpropOptions>(options)) return &rmsprop->momentum();
  return nullptr;
}

bool has_momentum(const torch::optim::OptimizerOptions& options) {
  using namespace torch::optim;
  const auto& type = typeid(options);
  return type == typeid(AdamWOptions) || type == typeid(AdamOptions) ||
         type == typeid(SGDOptions) || type == typeid(RMSpropOptions);
}

}  // namespace torchlore::schedule::detail
