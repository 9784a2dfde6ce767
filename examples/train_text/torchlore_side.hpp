#pragma once

#include <torchlore/core/run_state.hpp>
#include <torchlore/optimizer/fused_adamw.hpp>
#include <torchlore/step.hpp>

#include "run.hpp"

namespace text {

inline torchlore::Activations activations(const Settings& s) {
  if (s.activations == "keep") return torchlore::Activations::keep();
  if (s.activations == "bf16") return torchlore::Activations::compress(at::kBFloat16);
  return torchlore::Activations::compress(s.activations == "fp16" ? at::kHalf : at::kChar);
}

/// The rates of `Run::learning_rate`, as factors of the peak: the last step of the warm-up is the
/// first of the cosine.
inline torchlore::Schedule schedule(const Run& run) {
  namespace schedule = torchlore::schedule;
  const auto rise = run.warmup_steps() - 1;
  const auto cosine =
      schedule::cosine(std::max<int64_t>(1, run.settings.steps - run.warmup_steps()), 0.1);
  return rise > 0 ? schedule::warmup(rise).then(cosine) : cosine;
}

/// The loop with torchlore: the same model, batches, schedule and clipping.
class TorchloreSide {
 public:
  TorchloreSide(const Run& run, Record& record)
      : model(run.make_model()),
        run_(run),
        record_(record),
        optimizer_(model->parameters(), adamw(run.settings)),
        step_(optimizer_,
              {.precision = run.settings.precision == "bf16" ? torchlore::Precision::bf16()
                                                             : torchlore::Precision::fp32(),
               .activations = activations(run.settings),
               .accumulate = torchlore::Accumulate::batches(run.settings.accumulate),
               .clip = torchlore::clip::norm(1.0),
               .schedule = schedule(run)}),
        state_(run.file("torchlore.state"), {.keep = 2}) {
    record.precision = run.settings.precision;
    state_.add("model", *model).add("optimizer", optimizer_, *model).add("training_step", step_);
    state_.add("step", record.step).add("seconds", record.seconds);
  }

  void step(int64_t step) {
    for (int64_t micro = 0; micro < run_.settings.accumulate; ++micro) {
      step_([&] { return next_byte_loss(model, run_.batch(step, micro)); });
    }
  }

  void save() { state_.save(record_.step); }
  bool resume() { return state_.resume(); }

  GPT model;

 private:
  const Run& run_;
  Record& record_;
  torchlore::FusedAdamW optimizer_;
  torchlore::TrainingStep step_;
  torchlore::RunState state_;
};

}  // namespace text
