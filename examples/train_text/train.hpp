#pragma once

#include <optional>

#include "memory.hpp"
#include "run.hpp"
#include "sample.hpp"

namespace text {

/// Counts the seconds of training: batches, steps and saves, not evaluations.
class Stopwatch {
 public:
  explicit Stopwatch(const Run& run) : run_(run) {}

  void start(double seconds) {
    seconds_ = seconds;
    begin_ = monotonic_seconds();
  }
  double seconds() const { return seconds_ + monotonic_seconds() - begin_; }

  /// Runs `f` with the clock stopped. An accelerator first finishes what it was given.
  template <typename F>
  void pause(F&& f) {
    run_.synchronize();
    const double now = seconds();
    f();
    run_.synchronize();
    start(now);
  }

 private:
  const Run& run_;
  double seconds_ = 0;
  double begin_ = 0;
};

/// Trains one side to the end or to Ctrl-C, and keeps its record in the run folder.
///
/// With a `target`, a side that ends above it goes on at the last learning rate, a quarter of the
/// steps at most, until it reaches it.
template <typename Side>
void train(const Run& run, const std::string& name, std::optional<double> target) {
  const auto record_path = run.file(name + ".record");
  const auto& s = run.settings;
  Record record{.side = name};
  Side side(run, record);
  for (const auto& p : side.model->parameters()) record.parameters += p.numel();
  if (const auto old = s.resume ? read_record(record_path) : std::nullopt) {
    if (old->done) return;
    if (side.resume()) {
      record.peak_memory = old->peak_memory;
      std::copy_if(old->curve.begin(), old->curve.end(), std::back_inserter(record.curve),
                   [&](const Point& p) { return p.step <= record.step; });
    }
  }

  reset_peak_memory(run.device());
  Progress progress(name, s.steps, s.tokens_per_step());
  Stopwatch clock(run);
  const auto evaluate = [&] {
    clock.pause([&] {
      record.seconds = clock.seconds();
      record.curve.push_back({record.step, record.seconds, run.held_out_loss(side.model)});
      progress.evaluated(record.step, record.seconds, record.curve.back().loss);
    });
  };
  // The record first: whatever the state on disk has seen, the curve beside it has.
  const auto save = [&] {
    run.synchronize();
    record.seconds = clock.seconds();
    record.peak_memory = std::max(record.peak_memory, peak_memory(run.device()));
    write_record(record, record_path);
    side.save();
  };
  const auto go_on = [&] {
    const bool above = target && record.curve.back().loss > *target;
    return record.step < s.steps || (above && record.step < s.steps + s.steps / 4);
  };

  clock.start(record.seconds);
  if (record.curve.empty()) evaluate();
  while (go_on() && stop_requested == 0) {
    side.step(record.step);
    ++record.step;
    progress.step(record.step, clock.seconds());
    if (record.step % run.evaluate_every() == 0 || record.step == s.steps) {
      evaluate();
      if (record.curve.size() % 5 == 0) save();
    }
  }
  save();
  if (!go_on()) {
    record.done = true;
    record.sample = sample(run, side.model);
    write_record(record, record_path);
  }
  progress.finish();
}

}  // namespace text
