#include "torchlore/optimizer/weight_average.hpp"

#include <ATen/ops/empty_like.h>
#include <c10/core/GradMode.h>
#include <torch/nn/module.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "../core/differences.hpp"
#include "average_pass.hpp"
#include "torchlore/core/error.hpp"
#include "torchlore/core/module_state.hpp"

namespace torchlore {

using average::Pair;
using average::Pairs;

struct WeightAverage::State {
  Pairs parameters = {};
  Pairs buffers = {};
  AverageBuffers buffer_rule = AverageBuffers::copy;
  int64_t start = 0;
  int64_t period = 1;
  /// The weight of the model in the next average, after so many.
  std::function<double(int64_t updates)> weight = nullptr;
  int64_t steps = 0;
  int64_t updates = 0;
  bool swapped = false;

  void check_not_swapped(const char* what) const {
    TORCH_CHECK(!swapped, "cannot ", what,
                " a WeightAverage while its averages are in the model; end the scope that swap() "
                "gave first");
  }

  void check_fits() const {
    for (const auto* pairs : {&parameters, &buffers}) {
      for (const auto& [name, live, average] : *pairs) {
        TORCH_CHECK_VALUE(live.sizes() == average.sizes() && live.device() == average.device(), "'",
                          name, "' has shape ", live.sizes(), " on ", live.device(),
                          " now, but its average has ", average.sizes(), " on ", average.device(),
                          "; make the WeightAverage when the model has its final form");
      }
    }
  }

  template <typename F>
  void for_each(const F& f) const {
    for (const auto& pair : parameters) f("parameters/", pair);
    for (const auto& pair : buffers) f("buffers/", pair);
  }
};

namespace {

/// The tensors that `module_state_dict` names, each with an average beside it.
Pairs with_averages(const torch::OrderedDict<std::string, at::Tensor>& named,
                    std::unordered_set<const void*>& seen) {
  const c10::NoGradGuard no_grad;
  Pairs pairs;
  for (const auto& item : named) {
    const auto& live = item.value();
    if (!live.defined() || !seen.insert(live.unsafeGetTensorImpl()).second) continue;
    const auto dtype = live.scalar_type();
    const bool half = dtype == at::kHalf || dtype == at::kBFloat16;
    const auto average = at::empty_like(live, live.options().dtype(half ? at::kFloat : dtype));
    pairs.push_back({item.key(), live, average.copy_(live)});
  }
  return pairs;
}

/// What both kinds of average share.
template <typename State>
std::shared_ptr<State> make_state(const torch::nn::Module& model, int64_t start, int64_t period,
                                  AverageBuffers buffers) {
  TORCH_CHECK_VALUE(start >= 0, "WeightAverage: start must be 0 or more steps, but is ", start);
  check_count("WeightAverage: period", period);
  module_state_dict(model);  // refuses what cannot be written in place
  auto state = std::make_shared<State>();
  std::unordered_set<const void*> seen;
  state->parameters = with_averages(model.named_parameters(), seen);
  TORCH_CHECK_VALUE(
      !state->parameters.empty(),
      "WeightAverage got a model without parameters; pass the module that holds them");
  if (buffers != AverageBuffers::leave) {
    state->buffers = with_averages(model.named_buffers(), seen);
  }
  state->buffer_rule = buffers;
  state->start = start;
  state->period = period;
  return state;
}

/// The decay of the average that follows `n` others.
double decay_after(const EmaOptions& options, double n) {
  switch (options.warmup) {
    case EmaWarmup::ratio:
      return std::min(options.decay, (1 + n) / (10 + n));
    case EmaWarmup::power:
      return std::min(options.decay, 1 - std::pow(1 + n / options.inv_gamma, -options.power));
    case EmaWarmup::none:
      break;
  }
  return options.decay;
}

}  // namespace

WeightAverage::WeightAverage(std::shared_ptr<State> state) : state_(std::move(state)) {}

WeightAverage WeightAverage::ema(const torch::nn::Module& model, EmaOptions options) {
  check_in_range("WeightAverage::ema: decay", options.decay, 0, 1);
  check_positive("WeightAverage::ema: inv_gamma", options.inv_gamma);
  check_positive("WeightAverage::ema: power", options.power);
  auto state = make_state<State>(model, options.start, options.period, options.buffers);
  state->weight = [options](int64_t updates) {
    return 1 - decay_after(options, static_cast<double>(updates));
  };
  return WeightAverage(std::move(state));
}

WeightAverage WeightAverage::swa(const torch::nn::Module& model, SwaOptions options) {
  auto state = make_state<State>(model, options.start, options.period, options.buffers);
  state->weight = [](int64_t updates) { return 1 / (static_cast<double>(updates) + 1); };
  return WeightAverage(std::move(state));
}

bool WeightAverage::update() {
  auto& s = *state_;
  s.check_not_swapped("update");
  const auto step = s.steps + 1;
  if (step < s.start || (step - s.start) % s.period != 0) {
    s.steps = step;
    return false;
  }
  s.check_fits();
  const c10::NoGradGuard no_grad;
  const bool first = s.updates == 0;
  const double weight = s.weight(s.updates);
  if (first) {
    average::copy_(s.parameters);
  } else {
    average::lerp_(s.parameters, weight);
  }
  if (first || s.buffer_rule == AverageBuffers::copy) {
    average::copy_(s.buffers);
  } else {
    average::lerp_(s.buffers, weight);
  }
  s.steps = step;
  ++s.updates;
  return true;
}

struct WeightAverage::Scope::Aside {
  struct Kept {
    Pair pair;
    at::Tensor own;  ///< the model's
    bool buffer;
    int64_t version = 0;  ///< of the model's tensor with the average in it
  };
  std::shared_ptr<State> state;
  Pairs exchanged;         ///< the average's memory holds the model's own
  std::vector<Kept> kept;  ///< where that is not possible
};

WeightAverage::Scope::Scope(const WeightAverage& of) : aside_(std::make_unique<Aside>()) {
  auto& state = *of.state_;
  state.check_not_swapped("swap in");
  state.check_fits();
  const c10::NoGradGuard no_grad;
  const auto take = [&](const Pairs& pairs, bool buffers) {
    for (const auto& pair : pairs) {
      if (average::same_host_memory(pair)) {
        aside_->exchanged.push_back(pair);
      } else {
        aside_->kept.push_back({pair, pair.live.detach().clone(), buffers});
      }
    }
  };
  take(state.parameters, false);
  take(state.buffers, true);
  // Nothing was written so far, and nothing is allocated from here on.
  for (auto& kept : aside_->kept) {
    kept.pair.live.copy_(kept.pair.average);
    kept.version = kept.pair.live._version();
  }
  average::swap_bytes(aside_->exchanged);
  state.swapped = true;
  aside_->state = of.state_;
}

WeightAverage::Scope::~Scope() {
  const c10::NoGradGuard no_grad;
  for (auto& [pair, own, buffer, version] : aside_->kept) {
    // Only what was written meanwhile: the model's 16 bits are less than the average has.
    if (buffer && pair.live._version() != version) pair.average.copy_(pair.live);
    pair.live.copy_(own);
  }
  average::swap_bytes(aside_->exchanged);
  aside_->state->swapped = false;
}

WeightAverage::Scope WeightAverage::swap() const { return Scope(*this); }

bool WeightAverage::swapped() const { return state_->swapped; }

void WeightAverage::copy_to_model() const {
  state_->check_not_swapped("copy from");
  state_->check_fits();
  const c10::NoGradGuard no_grad;
  state_->for_each([](const char*, const Pair& pair) { pair.live.copy_(pair.average); });
}

StateDict WeightAverage::averages() const {
  state_->check_not_swapped("read");
  StateDict all;
  state_->for_each([&](const char*, const Pair& pair) { all.emplace(pair.name, pair.average); });
  return all;
}

int64_t WeightAverage::steps() const { return state_->steps; }

int64_t WeightAverage::updates() const { return state_->updates; }

StateDict WeightAverage::state_dict() const {
  state_->check_not_swapped("save");
  StateDict all{{"steps", state_value(state_->steps)}, {"updates", state_value(state_->updates)}};
  state_->for_each([&](const std::string& prefix, const Pair& pair) {
    all.emplace(prefix + pair.name, pair.average);
  });
  return all;
}

void WeightAverage::check_state_dict(const StateDict& state) const {
  state_->check_not_swapped("load");
  detail::Differences differences;
  detail::compare_states(state_dict(), state, differences);
  detail::check_fits(differences, "the WeightAverage");
}

void WeightAverage::load_state_dict(const StateDict& state) {
  check_state_dict(state);
  const c10::NoGradGuard no_grad;
  state_->for_each([&](const std::string& prefix, const Pair& pair) {
    pair.average.copy_(state.at(prefix + pair.name));
  });
  state_->steps = state_int(state, "steps");
  state_->updates = state_int(state, "updates");
}

}  // namespace torchlore
