#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/full.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <deque>
#include <utility>
#include <vector>

namespace torchlore::detail {

/// The newest numbers of a series, by age and by size, for percentiles. Adding one moves a third of
/// them by a place, on average.
class SortedWindow {
 public:
  explicit SortedWindow(int64_t capacity) : capacity_(static_cast<size_t>(capacity)) {}

  void add(double value) {
    by_age_.push_back(value);
    if (by_age_.size() <= capacity_) {
      sorted_.insert(std::upper_bound(sorted_.begin(), sorted_.end(), value), value);
      return;
    }
    replace(by_age_.front(), value);
    by_age_.pop_front();
  }

  /// numpy.percentile(values, percentile), its rounding included; there must be a value.
  double percentile(double percentile) const {
    const double position = percentile / 100 * static_cast<double>(sorted_.size() - 1);
    const auto below = static_cast<size_t>(position);
    const double share = position - static_cast<double>(below);
    const double low = sorted_[below];
    const double high = sorted_[std::min(below + 1, sorted_.size() - 1)];
    return share < 0.5 ? low + (high - low) * share : high - (high - low) * (1 - share);
  }

  double largest() const { return sorted_.back(); }
  bool empty() const { return sorted_.empty(); }
  int64_t size() const { return static_cast<int64_t>(sorted_.size()); }

  void clear() {
    by_age_.clear();
    sorted_.clear();
  }

  /// For a state: always of full length, so that its layout does not change; oldest first, then NaN.
  at::Tensor tensor() const {
    auto all = at::full({static_cast<int64_t>(capacity_)}, std::nan(""), at::kDouble);
    std::copy(by_age_.begin(), by_age_.end(), all.mutable_data_ptr<double>());
    return all;
  }

  /// The newest of a saved state's numbers. Throws c10::ValueError, naming `what`, for one that is
  /// not finite or below `least`.
  static SortedWindow from(const at::Tensor& tensor, int64_t capacity, const char* what,
                           double least) {
    TORCH_CHECK_VALUE(tensor.dim() == 1, "the saved ", what, " must be 1-d, but have shape ",
                      tensor.sizes());
    const auto saved = tensor.to(at::kCPU, at::kDouble).contiguous();
    SortedWindow window(capacity);
    const auto* const values = saved.const_data_ptr<double>();
    for (int64_t i = 0; i < saved.numel(); ++i) {
      if (std::isnan(values[i])) continue;  // not filled yet
      TORCH_CHECK_VALUE(std::isfinite(values[i]) && values[i] >= least, "the saved ", what,
                        " must be finite and not below ", least, ", but hold ", values[i]);
      window.add(values[i]);
    }
    return window;
  }

 private:
  /// Moves what lies between the old place and the new one.
  void replace(double old, double value) {
    const auto gap = std::lower_bound(sorted_.begin(), sorted_.end(), old);
    if (value > old) {
      const auto end = std::lower_bound(gap, sorted_.end(), value);
      *std::move(gap + 1, end, gap) = value;
    } else {
      const auto begin = std::upper_bound(sorted_.begin(), gap, value);
      std::move_backward(begin, gap, gap + 1);
      *begin = value;
    }
  }

  size_t capacity_;
  std::deque<double> by_age_;
  std::vector<double> sorted_;
};

}  // namespace torchlore::detail
