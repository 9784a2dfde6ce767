#include <ATen/ops/full.h>

#include <algorithm>
#include <cmath>
#include <deque>

#include "nonfinite.hpp"
#include "torchlore/core/error.hpp"
#include "torchlore/core/gradient_pass.hpp"
#include "torchlore/gradient/clip.hpp"

namespace torchlore::clip {
namespace {

/// Stands for a percentile of 0, which cannot be divided by.
constexpr double kNearlyZero = 1e-12;

/// The newest norms, by age and by size.
class NormHistory {
 public:
  explicit NormHistory(int64_t capacity) : capacity_(static_cast<size_t>(capacity)) {}

  void add(double norm) {
    if (by_age_.size() == capacity_) {
      sorted_.erase(std::lower_bound(sorted_.begin(), sorted_.end(), by_age_.front()));
      by_age_.pop_front();
    }
    by_age_.push_back(norm);
    sorted_.insert(std::upper_bound(sorted_.begin(), sorted_.end(), norm), norm);
  }

  /// numpy.percentile(norms, percentile), its rounding included.
  double percentile(double percentile) const {
    const double position = percentile / 100 * static_cast<double>(sorted_.size() - 1);
    const auto below = static_cast<size_t>(position);
    const double share = position - static_cast<double>(below);
    const double low = sorted_[below];
    const double high = sorted_[std::min(below + 1, sorted_.size() - 1)];
    return share < 0.5 ? low + (high - low) * share : high - (high - low) * (1 - share);
  }

  bool empty() const { return sorted_.empty(); }

  /// Always of full length, so that a state's layout does not change: oldest first, then NaN.
  at::Tensor tensor() const {
    auto all = at::full({static_cast<int64_t>(capacity_)}, std::nan(""), at::kDouble);
    std::copy(by_age_.begin(), by_age_.end(), all.data_ptr<double>());
    return all;
  }

 private:
  size_t capacity_;
  std::deque<double> by_age_;
  std::vector<double> sorted_;
};

class AutoClipper final : public Clipper {
 public:
  AutoClipper(double percentile, const AutoClipOptions& options)
      : percentile_(percentile), options_(options), history_(options.history) {}

  std::optional<double> norm_type() const override { return options_.norm_type; }
  bool adaptive() const override { return true; }

  double max_norm(const at::Tensor& norm) override {
    if (options_.error_if_nonfinite) detail::check_finite_norm(norm);
    const double value = norm.item().toDouble();
    if (std::isfinite(value)) history_.add(value);
    if (history_.empty()) return kNoClip;
    return std::max(history_.percentile(percentile_), kNearlyZero);
  }

  StateDict state_dict() const override { return {{"history", history_.tensor()}}; }

  void load_state_dict(const StateDict& state) override {
    const auto found = state.find("history");
    TORCH_CHECK_VALUE(found != state.end(), "the saved state of clip::autoclip has no 'history'");
    const auto saved = found->second.to(at::kCPU, at::kDouble).contiguous();
    TORCH_CHECK_VALUE(saved.dim() == 1, "'history' of clip::autoclip must be 1-d, but has shape ",
                      saved.sizes());
    NormHistory history(options_.history);
    const auto* const norms = saved.const_data_ptr<double>();
    for (int64_t i = 0; i < saved.numel(); ++i) {
      if (std::isnan(norms[i])) continue;  // not filled yet
      check_not_negative("a norm in 'history' of clip::autoclip", norms[i]);
      history.add(norms[i]);
    }
    history_ = std::move(history);
  }

 private:
  double percentile_;
  AutoClipOptions options_;
  NormHistory history_;
};

}  // namespace

Clip autoclip(double percentile, const AutoClipOptions& options) {
  check_in_range("clip::autoclip(percentile)", percentile, 0, 100);
  check_count("history", options.history);
  TORCH_CHECK_VALUE(options.norm_type > 0, "norm_type must be above 0 (2, 1, infinity, …), but is ",
                    options.norm_type);
  return AutoClipper(percentile, options);
}

}  // namespace torchlore::clip
