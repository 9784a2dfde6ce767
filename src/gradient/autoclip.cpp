#include <algorithm>
#include <cmath>

#include "nonfinite.hpp"
#include "sorted_window.hpp"
#include "torchlore/core/error.hpp"
#include "torchlore/core/gradient_pass.hpp"
#include "torchlore/gradient/clip.hpp"

namespace torchlore::clip {
namespace {

/// Stands for a percentile of 0, which cannot be divided by.
constexpr double kNearlyZero = 1e-12;

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
    history_ =
        detail::SortedWindow::from(found->second, options_.history, "norms of clip::autoclip", 0);
  }

 private:
  double percentile_;
  AutoClipOptions options_;
  detail::SortedWindow history_;
};

}  // namespace

Clip autoclip(double percentile, const AutoClipOptions& options) {
  check_in_range("clip::autoclip(percentile)", percentile, 0, 100);
  check_count("history", options.history);
  check_norm_type(options.norm_type);
  return AutoClipper(percentile, options);
}

}  // namespace torchlore::clip
