#include "torchlore/privacy/audit.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "torchlore/core/error.hpp"
#include "torchlore/privacy/gaussian_mechanism.hpp"

namespace torchlore {
namespace {

double log_mass(int64_t k, int64_t n, double p) {
  const auto x = static_cast<double>(k), all = static_cast<double>(n);
  const double successes = k == 0 ? 0 : x * std::log(p);
  const double failures = k == n ? 0 : (all - x) * std::log1p(-p);
  return std::lgamma(all + 1) - std::lgamma(x + 1) - std::lgamma(all - x + 1) + successes +
         failures;
}

/// P[Binomial(n, p) >= k].
double at_least(int64_t k, int64_t n, double p) {
  if (k <= 0) return 1;
  double sum = 0;
  // Outwards from the largest term, so that what is left out is small.
  const auto mode = std::clamp(static_cast<int64_t>(p * static_cast<double>(n + 1)), k, n);
  for (int64_t j = mode; j <= n; ++j) {
    const double term = std::exp(log_mass(j, n, p));
    sum += term;
    if (term < 1e-18 * sum) break;
  }
  for (int64_t j = mode - 1; j >= k; --j) {
    const double term = std::exp(log_mass(j, n, p));
    sum += term;
    if (term < 1e-18 * sum) break;
  }
  return std::min(sum, 1.0);
}

/// The p in (0, 1) at which `is_beyond`, which is true from there on, turns.
template <typename F>
double turn(const F& is_beyond, bool round_up) {
  double low = 0, high = 1;
  for (int i = 0; i < 60; ++i) {
    const double middle = (low + high) / 2;
    (is_beyond(middle) ? high : low) = middle;
  }
  return round_up ? high : low;
}

double inverse_normal(double p) {
  if (p <= 0) return -40;
  if (p >= 1) return 40;
  double low = -40, high = 40;
  for (int i = 0; i < 100; ++i) {
    const double middle = (low + high) / 2;
    (std::erfc(-middle / M_SQRT2) / 2 >= p ? high : low) = middle;
  }
  return (low + high) / 2;
}

void check(const AuditOptions& options) {
  TORCH_CHECK_VALUE(options.delta >= 0 && options.delta < 1, "delta must lie in [0, 1), but is ",
                    options.delta);
  TORCH_CHECK_VALUE(options.confidence > 0 && options.confidence < 1,
                    "confidence must lie in (0, 1), but is ", options.confidence);
}

void check_scores(const std::vector<double>& scores) {
  TORCH_CHECK_VALUE(std::none_of(scores.begin(), scores.end(), [](double s) { return s != s; }),
                    "a score of an audit is NaN");
}

/// What a threshold says of a list: scores above it, of so many.
struct Hits {
  int64_t above = 0;
  int64_t all = 0;
};

Hits hits(const std::vector<double>& scores, double threshold) {
  const auto above =
      std::count_if(scores.begin(), scores.end(), [&](double s) { return s > threshold; });
  return {above, static_cast<int64_t>(scores.size())};
}

/// Lower bounds that one threshold proves, from either error.
struct Proof {
  double epsilon = 0;
  double mu = 0;
};

Proof proof(const Hits& with, const Hits& without, const AuditOptions& options) {
  // Of each interval one end is used, which holds with (1 + confidence) / 2: both together with the
  // confidence asked for.
  const auto right = clopper_pearson(with.above, with.all, options.confidence);
  const auto wrong = clopper_pearson(without.above, without.all, options.confidence);
  const auto ratio = [&](double likely, double unlikely) {
    return likely > options.delta ? std::log((likely - options.delta) / unlikely) : 0.0;
  };
  Proof found;
  found.epsilon =
      std::max({0.0, ratio(right.lower, wrong.upper), ratio(1 - wrong.upper, 1 - right.lower)});
  found.mu = std::max(0.0, inverse_normal(right.lower) - inverse_normal(wrong.upper));
  return found;
}

/// The thresholds that prove most.
struct Thresholds {
  double epsilon = 0;
  double mu = 0;
};

Thresholds choose(const std::vector<double>& with, const std::vector<double>& without,
                  const AuditOptions& options) {
  auto candidates = with;
  candidates.insert(candidates.end(), without.begin(), without.end());
  std::sort(candidates.begin(), candidates.end());
  constexpr size_t kMost = 400;  // more would find the same
  const size_t step = std::max<size_t>(1, candidates.size() / kMost);
  Thresholds best{candidates.front(), candidates.front()};
  Proof most;
  for (size_t i = 0; i < candidates.size(); i += step) {
    const auto found = proof(hits(with, candidates[i]), hits(without, candidates[i]), options);
    if (found.epsilon > most.epsilon) best.epsilon = candidates[i];
    if (found.mu > most.mu) best.mu = candidates[i];
    most = {std::max(most.epsilon, found.epsilon), std::max(most.mu, found.mu)};
  }
  return best;
}

}  // namespace

ProbabilityBounds clopper_pearson(int64_t successes, int64_t trials, double confidence) {
  check({.confidence = confidence});
  TORCH_CHECK_VALUE(trials >= 1 && successes >= 0 && successes <= trials,
                    "there must be 1 or more trials and 0 to that many successes, but there are ",
                    trials, " and ", successes);
  const double tail = (1 - confidence) / 2;
  ProbabilityBounds bounds;
  if (successes > 0) {
    bounds.lower = turn([&](double p) { return at_least(successes, trials, p) > tail; }, false);
  }
  if (successes < trials) {
    // As many failures, or more.
    bounds.upper =
        1 - turn([&](double p) { return at_least(trials - successes, trials, p) > tail; }, false);
  }
  return bounds;
}

CanaryAudit audit_canary(const std::vector<double>& with, const std::vector<double>& without,
                         AuditOptions options) {
  check(options);
  check_scores(with);
  check_scores(without);
  TORCH_CHECK_VALUE(with.size() >= 4 && without.size() >= 4,
                    "an audit needs 4 or more scores with and without the canary, but got ",
                    with.size(), " and ", without.size());
  // A quarter is enough to choose by; what it lacks, the proof has.
  const auto middle = [](const std::vector<double>& all) {
    return all.begin() + static_cast<std::ptrdiff_t>(all.size() / 4);
  };
  const auto thresholds =
      choose({with.begin(), middle(with)}, {without.begin(), middle(without)}, options);
  const std::vector<double> a(middle(with), with.end()), b(middle(without), without.end());
  CanaryAudit audit;
  audit.epsilon = proof(hits(a, thresholds.epsilon), hits(b, thresholds.epsilon), options).epsilon;
  const double mu = proof(hits(a, thresholds.mu), hits(b, thresholds.mu), options).mu;
  if (mu > 0 && options.delta > 0) audit.gaussian_epsilon = gaussian_epsilon(1 / mu, options.delta);
  return audit;
}

double one_run_p_value(int64_t canaries, int64_t guesses, int64_t correct, double epsilon,
                       double delta) {
  const double q = 1 / (1 + std::exp(-epsilon));
  double largest = 0;
  double sum = 0;  // of the probabilities of correct - i to correct - 1
  for (int64_t i = 1; delta > 0 && i <= correct; ++i) {
    const double term = std::exp(log_mass(correct - i, guesses, q));
    sum += term;
    largest = std::max(largest, sum / static_cast<double>(i));
    if (1 <= largest * static_cast<double>(i))
      break;  // the sum is 1 at most: no larger one follows
  }
  return std::min(
      1.0, at_least(correct, guesses, q) + 2 * static_cast<double>(canaries) * delta * largest);
}

double audit_one_run(const std::vector<double>& scores, const std::vector<bool>& included,
                     int64_t guesses, AuditOptions options) {
  check(options);
  check_scores(scores);
  const auto canaries = static_cast<int64_t>(scores.size());
  TORCH_CHECK_VALUE(scores.size() == included.size(), "an audit got ", scores.size(), " scores of ",
                    included.size(), " canaries");
  TORCH_CHECK_VALUE(guesses >= 2 && guesses % 2 == 0 && guesses <= canaries,
                    "guesses must be an even number from 2 to the number of canaries (", canaries,
                    "), but is ", guesses);
  std::vector<size_t> order(scores.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return scores[a] < scores[b]; });
  int64_t correct = 0;
  const auto side = static_cast<size_t>(guesses / 2);
  for (size_t i = 0; i < side; ++i) {
    correct += included[order[i]] ? 0 : 1;
    correct += included[order[order.size() - 1 - i]] ? 1 : 0;
  }
  const double error = 1 - options.confidence;
  double low = 0, high = 30;  // e^30 right guesses for a wrong one: nobody has so many canaries
  if (one_run_p_value(canaries, guesses, correct, 0, options.delta) > error) return 0;
  for (int i = 0; i < 50; ++i) {
    const double middle = (low + high) / 2;
    const bool refuted =
        one_run_p_value(canaries, guesses, correct, middle, options.delta) <= error;
    (refuted ? low : high) = middle;
  }
  return low;
}

}  // namespace torchlore
