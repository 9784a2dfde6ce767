#pragma once

#include "sorted_window.hpp"
#include "torchlore/gradient/spike_guard.hpp"

namespace torchlore::detail {

/// Tells spikes from what a loss does anyway: the statistics of `SpikeGuard`, on the host.
class SpikeDetector {
 public:
  explicit SpikeDetector(const SpikeGuardOptions& options);

  struct Judgement {
    SpikeReason reason;
    double level;  // NaN before the first good loss, as the next
    double z_score;
  };
  Judgement judge(double loss) const;
  /// A good loss.
  void remember(double loss);
  /// Whether a good loss is good enough for a snapshot.
  bool calm(const Judgement& judgement) const;
  void forget() { window_.clear(); }

  at::Tensor tensor() const { return window_.tensor(); }
  void load(const at::Tensor& tensor);
  void check(const at::Tensor& tensor) const;

 private:
  double spread(double median) const;
  bool warm() const { return window_.size() >= warmup_; }

  double jump_;
  double z_threshold_;
  double min_spread_;
  int64_t capacity_;
  int64_t warmup_;
  bool log_scale_;
  SortedWindow window_;  // of log(loss), or of the loss
};

}  // namespace torchlore::detail
