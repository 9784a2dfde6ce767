#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "torchlore/core/error.hpp"
#include "torchlore/core/state_dict.hpp"

namespace torchlore {

/// Options of `SizeSearch`.
struct SizeSearchOptions {
  /// Never smaller than this.
  int64_t min_size = 1;
  /// While the largest size that fits is not known: batches in a row without an error before a
  /// larger one is tried.
  int64_t search_every = 8;
  /// The search ends when what fits is this share of what does not; in [0.5, 1].
  double close_enough = 0.9;
  /// When the search has ended: batches in a row before the smallest size that did not fit is tried
  /// again, in case memory has become free. Each time in vain doubles it.
  int64_t recheck_after = 1000;
};

/// Finds how many examples fit, by what became of those that were tried: the rule of
/// `BatchSplitter`.
///
/// It remembers the largest size that fit and the smallest that did not. A size that fails is halved
/// until one fits. Then the middle between the two is tried every `search_every` batches, until
/// what fits is `close_enough`; and every `recheck_after` batches what did not fit.
class SizeSearch {
 public:
  /// No size; larger than any.
  static constexpr int64_t kNone = std::numeric_limits<int64_t>::max();

  /// @throws c10::ValueError for an option out of range.
  explicit SizeSearch(SizeSearchOptions options = {})
      : options_(options), patience_(options.recheck_after) {
    check_count("min_size", options.min_size);
    check_count("search_every", options.search_every);
    check_count("recheck_after", options.recheck_after);
    check_in_range("close_enough", options.close_enough, 0.5, 1);
  }

  /// The size of the parts to run a batch in: the batch's own if it may fit as a whole.
  int64_t choose(int64_t batch) {
    trying_ = false;
    if (fails_ == kNone || batch <= fits_) return std::max<int64_t>(batch, 1);
    const auto safe = fits_ > 0 ? fits_ : std::max(options_.min_size, half(fails_));
    const auto larger = std::min(batch, searching() ? fits_ + (fails_ - fits_) / 2 : fails_);
    trying_ = fits_ > 0 && good_ >= (searching() ? options_.search_every : patience_);
    return trying_ ? larger : equal_parts(batch, safe);
  }

  /// The batch went through in parts of this size.
  void fitted(int64_t size) {
    good_ = trying_ ? 0 : good_ + 1;
    trying_ = false;
    fits_ = std::max(fits_, size);
    if (fits_ < fails_) return;
    fails_ = kNone;
    patience_ = options_.recheck_after;
  }

  /// It did not; returns the size to try next. The smallest one that failed is returned again.
  int64_t failed(int64_t batch, int64_t size) {
    constexpr int64_t kLongest = int64_t{1} << 40;
    if (size >= fails_) patience_ = std::min(patience_ * 2, kLongest);
    fails_ = std::min(fails_, size);
    good_ = 0;
    trying_ = false;
    if (fits_ >= fails_) fits_ = 0;  // memory has become scarce
    return equal_parts(batch, fits_ > 0 ? fits_ : std::max(options_.min_size, half(size)));
  }

  /// Whether there is a size that would be smaller.
  bool can_shrink(int64_t size) const { return size > options_.min_size; }
  /// Knows nothing any more.
  void forget() { *this = SizeSearch(options_); }

  /// The largest size that fit; 0 if none did yet.
  int64_t fits() const { return fits_; }
  /// The smallest size that did not; kNone if none did not.
  int64_t fails() const { return fails_; }

  /// What is known.
  StateDict state_dict() const {
    return {{"fits", state_value(fits_)},
            {"fails", state_value(fails_)},
            {"good", state_value(good_)},
            {"patience", state_value(patience_)}};
  }
  /// Takes the saved state over. @throws c10::ValueError if something is missing.
  void load_state_dict(const StateDict& state) {
    const auto fits = state_int(state, "fits"), fails = state_int(state, "fails");
    const auto good = state_int(state, "good"), patience = state_int(state, "patience");
    TORCH_CHECK_VALUE(fits >= 0 && fits < fails && good >= 0 && patience >= 1,
                      "the saved sizes cannot be: fits ", fits, ", fails ", fails, ", good ", good,
                      ", patience ", patience);
    fits_ = fits;
    fails_ = fails;
    good_ = good;
    patience_ = patience;
    trying_ = false;
  }

 private:
  static int64_t half(int64_t size) { return size - size / 2; }
  /// The size of parts as equal as can be, as few as with `size`.
  static int64_t equal_parts(int64_t batch, int64_t size) {
    if (batch <= 0) return size;
    const auto parts = (batch + size - 1) / size;
    return (batch + parts - 1) / parts;
  }
  bool searching() const {
    return static_cast<double>(fits_) < options_.close_enough * static_cast<double>(fails_ - 1);
  }

  SizeSearchOptions options_;
  int64_t fits_ = 0;
  int64_t fails_ = kNone;
  int64_t good_ = 0;     // batches in a row since an error, or since a larger size was found
  int64_t patience_;     // batches until what failed is tried again
  bool trying_ = false;  // a size that is larger than what is known to fit
};

}  // namespace torchlore
