// ActivationBudget: the budget is held, no bit changes, and the time it costs.
#include "torchlore/memory/activation_budget.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "claim.hpp"
#include "harness/timing.hpp"
#include "harness/training_pass.hpp"

namespace torchlore::claims {
namespace {

/// A share of the plain activations, and what it may cost on the transformers.
struct Share {
  double share;
  double bar;
};
constexpr Share kShares[] = {{0.5, 1.15}, {0.25, 1.30}, {0.1, 1.45}};

void plain_pass(const models::Workload& workload) { workload.loss().backward(); }
void checkpointed_pass(const models::Workload& workload) { workload.checkpointed().backward(); }

ActivationBudgetStats budgeted_pass(const models::Workload& workload, Bytes budget) {
  at::Tensor loss;
  std::shared_ptr<const ActivationBudgetStats> stats;
  {
    ActivationBudget scope(budget);
    stats = scope.stats();
    loss = workload.loss();
  }
  loss.backward();
  return *stats;
}

class Measurement {
 public:
  Measurement(Context& context, models::Workload workload)
      : context_(context), workload_(std::move(workload)), pass_(workload_) {
    plain_peak_ = pass_.peak([&] { plain_pass(workload_); });
    expected_ = pass_.result(true);
    pass_.prepare();
    activations_ = budgeted_pass(workload_, GiB(4096)).saved_bytes;
  }

  void run() {
    std::vector<Contender> contenders{contender("plain", [&] { plain_pass(workload_); })};
    for (const auto& [share, bar] : kShares) {
      const Bytes budget = budget_of(share);
      check(share, budget);
      contenders.push_back(contender(fmt::format("{:.0f} %", share * 100),
                                     [&, budget] { budgeted_pass(workload_, budget); }));
    }
    const auto seconds = interleave(contenders, sampling());
    const bool transformer = workload_.name.starts_with("transformer");
    for (size_t i = 0; i < std::size(kShares); ++i) {
      context_.report({.part = part(kShares[i].share, "time"),
                       .setting = workload_.setting,
                       .baseline = "the plain model",
                       .measured = ratio(seconds[i + 1], seconds[0]),
                       .bar = transformer ? kShares[i].bar : kNoBar,
                       .note = absolute_times({contenders[i + 1], contenders[0]},
                                              {seconds[i + 1], seconds[0]})});
    }
    if (workload_.checkpointed) against_checkpoint();
  }

 private:
  /// Of this a pass takes many seconds: fewer rounds, and a coarser search.
  bool slow() const { return workload_.name == "transformer_d512"; }
  Sampling sampling() const {
    if (context_.quick() || !slow()) return Sampling::of(context_);
    return {.rounds = 5, .warmup = 1};
  }
  Bytes budget_of(double share) const {
    return Bytes(static_cast<int64_t>(static_cast<double>(activations_) * share));
  }
  static std::string part(double share, const char* what) {
    return fmt::format("{:.0f}%/{}", share * 100, what);
  }
  Contender contender(std::string name, std::function<void()> work) {
    return timed(std::move(name), std::move(work), [this] { pass_.prepare(); });
  }

  /// The pool stays within the budget, or within the floor that it names; no bit differs.
  void check(double share, Bytes budget) {
    ActivationBudgetStats stats;
    const double peak = pass_.peak([&] { stats = budgeted_pass(workload_, budget); });
    const auto limit = std::max(budget.count(), stats.floor_bytes);
    const auto note = fmt::format(
        "activations {} -> {} of {} allowed{}; peak of the pass, gradients included, {} -> {}; "
        "pinned {}; {} of {} ops ran again",
        to_string(Bytes(activations_)), to_string(Bytes(stats.peak_pool_bytes)),
        to_string(Bytes(limit)), limit > budget.count() ? " (the floor)" : "",
        to_string(Bytes(static_cast<int64_t>(plain_peak_))),
        to_string(Bytes(static_cast<int64_t>(peak))), to_string(Bytes(stats.pinned_bytes)),
        stats.replayed_ops, stats.records);
    context_.report(
        {.part = part(share, "pool"),
         .setting = workload_.setting,
         .baseline = "the budget, or the floor that is named",
         .measured = {static_cast<double>(stats.peak_pool_bytes) / static_cast<double>(limit)},
         .bar = 1.0,
         .note = note});
    const auto different = TrainingPass::differences(pass_.result(true), expected_);
    context_.report({.part = part(share, "bits"),
                     .setting = workload_.setting,
                     .baseline = "the plain model",
                     .measured = {static_cast<double>(different)},
                     .unit = "tensors that differ",
                     .bar = 0,
                     .note = "gradients and buffers, compared bit by bit"});
  }

  /// At the peak of a checkpoint around every block: no more memory, and no more time.
  void against_checkpoint() {
    const double theirs = pass_.peak([&] { checkpointed_pass(workload_); });
    const auto [budget, ours] = budget_with_peak(theirs);
    context_.report(
        {.part = "checkpoint/memory",
         .setting = workload_.setting,
         .baseline = "torchlore::checkpoint around every block",
         .measured = {ours / theirs},
         .bar = 1.0,
         .note = fmt::format("peak of the pass {} against {}, with a budget of {}",
                             to_string(Bytes(static_cast<int64_t>(ours))),
                             to_string(Bytes(static_cast<int64_t>(theirs))), to_string(budget))});
    const std::vector<Contender> contenders{
        contender("budget", [&, budget = budget] { budgeted_pass(workload_, budget); }),
        contender("checkpoint", [&] { checkpointed_pass(workload_); })};
    const auto seconds = interleave(contenders, sampling());
    context_.report({.part = "checkpoint/time",
                     .setting = workload_.setting,
                     .baseline = "torchlore::checkpoint around every block",
                     .measured = ratio(seconds[0], seconds[1]),
                     .bar = 1.0,
                     .note = absolute_times(contenders, seconds)});
  }

  /// The largest budget under which the pass stays within `peak`, found by halving; the smallest
  /// one if none does.
  std::pair<Bytes, double> budget_with_peak(double peak) {
    const auto peak_with = [&](Bytes budget) {
      return pass_.peak([&] { budgeted_pass(workload_, budget); });
    };
    std::pair<Bytes, double> best{Bytes(0), peak_with(Bytes(0))};
    double low = 0;
    double high = 0.5;
    for (int i = 0; i < (context_.quick() ? 3 : slow() ? 5 : 10); ++i) {
      const double share = (low + high) / 2;
      const double ours = peak_with(budget_of(share));
      (ours <= peak ? low : high) = share;
      if (ours <= peak) best = {budget_of(share), ours};
    }
    return best;
  }

  Context& context_;
  models::Workload workload_;
  TrainingPass pass_;
  double plain_peak_ = 0;
  std::vector<at::Tensor> expected_;
  int64_t activations_ = 0;
};

template <models::Workload (*make)(bool)>
bool add_workload(const std::string& name, double minutes) {
  return add_claim(
      {.name = "activation_budget_" + name,
       .group = "memory",
       .promise = "an unmodified model trains within a budget of activation bytes, no "
                  "bit changed, at a bounded cost",
       .measure = [](Context& context) { Measurement(context, make(context.quick())).run(); },
       .minutes = minutes});
}

const bool registered =
    add_workload<models::transformer_d128>("transformer_d128", 1) &&
    add_workload<models::transformer_d512>("transformer_d512", 12) &&
    add_workload<models::resnet18>("resnet18", 2) && add_workload<models::lstm>("lstm", 1) &&
    add_workload<models::lstm_cell>("lstm_cell", 1) && add_workload<models::gpt>("gpt", 3);

}  // namespace
}  // namespace torchlore::claims
