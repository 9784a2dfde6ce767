#pragma once

#include <c10/util/Exception.h>
#include <c10/util/Type.h>
#include <torch/optim/adagrad.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>

#include <tuple>
#include <typeinfo>

/// The optimizers of LibTorch seen as lists of named options and named state, so that one piece of
/// code saves and loads them all.
namespace torchlore::detail {

template <typename OptionsType, typename StateType>
struct OptimizerKind {
  using Options = OptionsType;
  using State = StateType;
  const char* name;
};

/// Calls `f` with the `OptimizerKind` of the optimizer; refuses what is not derived from one.
template <typename F>
auto visit_kind(const torch::optim::Optimizer& optimizer, const F& f) {
  using namespace torch::optim;
  if (dynamic_cast<const AdamW*>(&optimizer)) {
    return f(OptimizerKind<AdamWOptions, AdamWParamState>{"AdamW"});
  }
  if (dynamic_cast<const Adam*>(&optimizer)) {
    return f(OptimizerKind<AdamOptions, AdamParamState>{"Adam"});
  }
  if (dynamic_cast<const SGD*>(&optimizer)) {
    return f(OptimizerKind<SGDOptions, SGDParamState>{"SGD"});
  }
  if (dynamic_cast<const RMSprop*>(&optimizer)) {
    return f(OptimizerKind<RMSpropOptions, RMSpropParamState>{"RMSprop"});
  }
  if (dynamic_cast<const Adagrad*>(&optimizer)) {
    return f(OptimizerKind<AdagradOptions, AdagradParamState>{"Adagrad"});
  }
  TORCH_CHECK_NOT_IMPLEMENTED(
      false, "cannot save an optimizer of type ", c10::demangle(typeid(optimizer).name()),
      ": only SGD, Adam, AdamW, RMSprop, Adagrad and classes derived from them keep state that can "
      "be keyed by parameter name; for another one write a class with state_dict() and "
      "load_state_dict()");
}

/// Calls `f(name, value&)` for every option of a group.
template <typename Options, typename F>
void for_each_option(Options& options, const F& f) {
  f("lr", options.lr());
  f("weight_decay", options.weight_decay());
  if constexpr (requires { options.momentum(); }) f("momentum", options.momentum());
  if constexpr (requires { options.dampening(); }) f("dampening", options.dampening());
  if constexpr (requires { options.nesterov(); }) f("nesterov", options.nesterov());
  if constexpr (requires { options.betas(); }) {
    f("beta1", std::get<0>(options.betas()));
    f("beta2", std::get<1>(options.betas()));
  }
  if constexpr (requires { options.eps(); }) f("eps", options.eps());
  if constexpr (requires { options.amsgrad(); }) f("amsgrad", options.amsgrad());
  if constexpr (requires { options.alpha(); }) f("alpha", options.alpha());
  if constexpr (requires { options.centered(); }) f("centered", options.centered());
  if constexpr (requires { options.lr_decay(); }) f("lr_decay", options.lr_decay());
  if constexpr (requires { options.initial_accumulator_value(); }) {
    f("initial_accumulator_value", options.initial_accumulator_value());
  }
}

/// Calls `f(name, tensor&, required)` for every tensor of a parameter's state. One that is not
/// required belongs to an option (amsgrad, momentum, centered) and may be undefined.
template <typename State, typename F>
void for_each_tensor(State& state, const F& f) {
  if constexpr (requires { state.exp_avg(); }) {
    f("exp_avg", state.exp_avg(), true);
    f("exp_avg_sq", state.exp_avg_sq(), true);
    f("max_exp_avg_sq", state.max_exp_avg_sq(), false);
  } else if constexpr (requires { state.square_avg(); }) {
    f("square_avg", state.square_avg(), true);
    f("momentum_buffer", state.momentum_buffer(), false);
    f("grad_avg", state.grad_avg(), false);
  } else if constexpr (requires { state.sum(); }) {
    f("sum", state.sum(), true);
  } else {
    f("momentum_buffer", state.momentum_buffer(), true);
  }
}

}  // namespace torchlore::detail
