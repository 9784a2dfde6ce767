#include <ATen/ops/empty.h>

#include <cmath>

#include "../core/state_parts.hpp"
#include "private_gradients.hpp"
#include "torchlore/core/error.hpp"

namespace torchlore::privacy {
namespace {

using detail::add_below;
using detail::state_below;

/// A column of the ledger's table.
template <typename T, typename F>
at::Tensor column(const PrivacyLedger& ledger, at::ScalarType dtype, const F& value_of) {
  const auto& events = ledger.events();
  auto result = at::empty({static_cast<int64_t>(events.size())}, dtype);
  auto* out = result.mutable_data_ptr<T>();
  for (const auto& event : events) *out++ = static_cast<T>(value_of(event));
  return result;
}

StateDict ledger_state(const PrivacyLedger& ledger) {
  return {
      {"noise_multiplier",
       column<double>(ledger, at::kDouble, [](const auto& e) { return e.noise_multiplier; })},
      {"sample_rate",
       column<double>(ledger, at::kDouble, [](const auto& e) { return e.sample_rate; })},
      {"steps", column<int64_t>(ledger, at::kLong, [](const auto& e) { return e.steps; })},
      {"noise", column<int64_t>(ledger, at::kLong, [](const auto& e) { return e.noise; })},
      {"sampling", column<int64_t>(ledger, at::kLong, [](const auto& e) { return e.sampling; })}};
}

at::Tensor loaded_column(const StateDict& state, const std::string& key, at::ScalarType dtype) {
  const auto found = state.find(key);
  TORCH_CHECK_VALUE(found != state.end() && found->second.defined() && found->second.dim() == 1 &&
                        found->second.scalar_type() == dtype,
                    "the saved privacy ledger has no column '", key, "' of ", dtype);
  return found->second.cpu().contiguous();
}

PrivacyLedger loaded_ledger(const StateDict& state) {
  const auto sigma = loaded_column(state, "noise_multiplier", at::kDouble);
  const auto rate = loaded_column(state, "sample_rate", at::kDouble);
  const auto steps = loaded_column(state, "steps", at::kLong);
  const auto noise = loaded_column(state, "noise", at::kLong);
  const auto sampling = loaded_column(state, "sampling", at::kLong);
  PrivacyLedger ledger;
  for (const auto* other : {&rate, &steps, &noise, &sampling}) {
    TORCH_CHECK_VALUE(other->size(0) == sigma.size(0),
                      "the columns of the saved privacy ledger are of unequal length");
  }
  for (int64_t i = 0; i < sigma.size(0); ++i) {
    const auto kind = noise.const_data_ptr<int64_t>()[i];
    const auto drawn = sampling.const_data_ptr<int64_t>()[i];
    TORCH_CHECK_VALUE(kind >= 0 && kind <= 1 && drawn >= 0 && drawn <= 1,
                      "the saved privacy ledger has noise of kind ", kind, " and sampling of kind ",
                      drawn, ", which are not known");
    ledger.add({.noise_multiplier = sigma.const_data_ptr<double>()[i],
                .sample_rate = rate.const_data_ptr<double>()[i],
                .steps = steps.const_data_ptr<int64_t>()[i],
                .noise = static_cast<Noise>(kind),
                .sampling = static_cast<Sampling>(drawn)});
  }
  return ledger;
}

const char* name_of(Sampling sampling) {
  return sampling == Sampling::poisson ? "Poisson samples" : "batches of a fixed size";
}

}  // namespace

StateDict PrivateGradients::state_dict() const {
  StateDict state{{"steps", state_value(steps_)},
                  {"noiseless", state_value(int64_t{noiseless_})},
                  {"max_grad_norm", state_value(max_norm_)},
                  {"dataset_size", state_value(options_.dataset_size)},
                  {"sampling", state_value(static_cast<int64_t>(options_.sampling))}};
  add_below(state, "spent/", ledger_state(spent_));
  add_below(state, "noise/", options_.noise.state_dict());
  return state;
}

void PrivateGradients::load_state_dict(const StateDict& state) {
  TORCH_CHECK_VALUE(steps_ == 0, "a private gradient stage that has made ", steps_,
                    " steps cannot load a state: they would be forgotten; load it into a new one");
  auto spent = loaded_ledger(state_below(state, "spent/"));
  const auto steps = state_int(state, "steps");
  const bool noiseless = state_int(state, "noiseless") != 0;
  const auto max_norm = state_double(state, "max_grad_norm");
  const auto dataset_size = state_int(state, "dataset_size");
  const auto sampling = state_int(state, "sampling");
  TORCH_CHECK_VALUE(dataset_size == options_.dataset_size, "the saved run was private for ",
                    dataset_size, " examples, and this one is declared to have ",
                    options_.dataset_size, "; resume with the data set of the saved run");
  TORCH_CHECK_VALUE(sampling == static_cast<int64_t>(options_.sampling), "the saved run drew ",
                    name_of(static_cast<Sampling>(sampling)), ", and this one draws ",
                    name_of(options_.sampling), "; nothing is proved of both together");
  TORCH_CHECK_VALUE(steps >= 0 && max_norm > 0 && std::isfinite(max_norm),
                    "the saved privacy state counts ", steps, " steps with a clipping norm of ",
                    max_norm, ", which is not possible");
  int64_t counted = 0;
  for (const auto& event : spent.events()) counted += event.steps;
  TORCH_CHECK_VALUE(noiseless ? counted <= steps : counted == steps,
                    "the saved privacy ledger accounts for ", counted, " of ", steps, " steps");
  options_.noise.load_state_dict(state_below(state, "noise/"));
  spent_ = std::move(spent);
  steps_ = steps;
  noiseless_ = noiseless;
  if (options_.adaptive) max_norm_ = max_norm;
  last_step_.reset();
}

}  // namespace torchlore::privacy
