// Privacy noise: draws a second on one core, and whether they have the distribution that they claim.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <functional>
#include <vector>

#include "claim.hpp"
#include "harness/statistics.hpp"
#include "harness/timing.hpp"
#include "torchlore/privacy/discrete_noise.hpp"
#include "torchlore/privacy/gaussian_noise.hpp"

namespace torchlore::claims {
namespace {

constexpr int64_t kBlock = 1 << 20;
constexpr double kWide = 0x1.37p42;  // units of the grid, as noise on gradients has
constexpr double kNarrow = 12;

void report_rate(Context& context, const char* part, const char* setting, double bar,
                 const std::function<void()>& draw_block) {
  auto seconds = interleave({timed(part, draw_block)}, Sampling::of(context)).front();
  for (double& s : seconds) s *= 1e9 / static_cast<double>(kBlock);
  const auto measured = median_estimate(seconds);
  context.report(
      {.part = part,
       .setting = setting,
       .baseline = "nothing",
       .measured = measured,
       .unit = "ns a draw",
       .bar = bar,
       .note = std::to_string(std::llround(1e3 / measured.value)) + " M draws a second"});
}

double normal_cdf(double x) { return std::erfc(-x / M_SQRT2) / 2; }

/// A histogram with the probabilities that it should have.
struct Histogram {
  std::vector<int64_t> counts;
  std::vector<double> expected;  // probabilities; all together 1

  /// Pearson's statistic, less its mean, in its standard deviations; cells that expect fewer than 5
  /// are one cell.
  double chi_squared(double draws) const {
    double statistic = 0, rare = 0, rare_seen = 0;
    int64_t cells = 0;
    for (size_t i = 0; i < counts.size(); ++i) {
      const double e = draws * expected[i], seen = static_cast<double>(counts[i]);
      if (e < 5) {
        rare += e;
        rare_seen += seen;
        continue;
      }
      statistic += (seen - e) * (seen - e) / e;
      ++cells;
    }
    if (rare > 0) statistic += (rare_seen - rare) * (rare_seen - rare) / std::max(rare, 1.0);
    const auto freedom = static_cast<double>(cells);
    return (statistic - freedom) / std::sqrt(2 * freedom);
  }

  /// Kolmogorov–Smirnov over the cells' edges, times the square root of the draws.
  double distance(double draws) const {
    double seen = 0, should = 0, largest = 0;
    for (size_t i = 0; i < counts.size(); ++i) {
      seen += static_cast<double>(counts[i]) / draws;
      should += expected[i];
      largest = std::max(largest, std::abs(seen - should));
    }
    return largest * std::sqrt(draws);
  }
};

/// Cells of equal width on [-8, 8] and two for the rest, with the normal distribution's probabilities.
Histogram normal_cells(int64_t cells) {
  Histogram result{std::vector<int64_t>(static_cast<size_t>(cells) + 2), {}};
  double before = 0;
  for (int64_t i = 0; i <= cells; ++i) {
    const double p = normal_cdf(-8 + 16.0 * static_cast<double>(i) / static_cast<double>(cells));
    result.expected.push_back(p - before);
    before = p;
  }
  result.expected.push_back(1 - before);
  return result;
}

void put(Histogram& histogram, double value) {
  const auto cells = static_cast<double>(histogram.counts.size()) - 2;
  const double place = std::floor((value + 8) / 16 * cells) + 1;
  ++histogram.counts[static_cast<size_t>(std::clamp(place, 0.0, cells + 1))];
}

/// Each whole number of [-20 sigma, 20 sigma], by the definition.
Histogram discrete_cells(double sigma) {
  const auto last = static_cast<int64_t>(20 * sigma);
  Histogram result{std::vector<int64_t>(static_cast<size_t>(2 * last + 1)), {}};
  double total = 0;
  for (int64_t y = -last; y <= last; ++y) {
    const auto x = static_cast<double>(y) / sigma;
    result.expected.push_back(std::exp(-x * x / 2));
    total += result.expected.back();
  }
  for (double& p : result.expected) p /= total;
  return result;
}

void report_fit(Context& context, const std::string& part, const char* what, double statistic,
                double bar, double draws) {
  context.report({.part = part,
                  .setting = std::to_string(static_cast<int64_t>(draws)) + " draws, all cores",
                  .baseline = "the distribution's definition",
                  .measured = {statistic, statistic, statistic},
                  .unit = what,
                  .bar = bar,
                  .note = "above the bar with probability 0.001 if all is right"});
}

void check_discrete(Context& context, int64_t blocks) {
  auto wide = normal_cells(1 << 14), narrow = discrete_cells(kNarrow);
  Histogram low{std::vector<int64_t>(1 << 10), std::vector<double>(1 << 10, 0x1p-10)};
  for (int64_t b = 0; b < blocks; ++b) {
    const auto numbers = discrete_gaussian({kBlock}, kWide);
    const auto* y = numbers.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < kBlock; ++i) {
      put(wide, static_cast<double>(y[i]) / kWide);
      ++low.counts[static_cast<uint64_t>(y[i]) % low.counts.size()];
    }
    const auto small = discrete_gaussian({kBlock}, kNarrow);
    const auto* z = small.const_data_ptr<int64_t>();
    const auto middle = static_cast<int64_t>(narrow.counts.size() / 2);
    for (int64_t i = 0; i < kBlock; ++i) ++narrow.counts[static_cast<size_t>(z[i] + middle)];
  }
  const auto draws = static_cast<double>(blocks * kBlock);
  report_fit(context, "secure_wide_chi2", "deviations of chi2", wide.chi_squared(draws), 3.2,
             draws);
  report_fit(context, "secure_wide_ks", "KS x sqrt(n)", wide.distance(draws), 1.95, draws);
  report_fit(context, "secure_low_bits_chi2", "deviations of chi2", low.chi_squared(draws), 3.4,
             draws);
  report_fit(context, "secure_narrow_chi2", "deviations of chi2", narrow.chi_squared(draws), 3.8,
             draws);
}

void check_fast(Context& context, int64_t blocks) {
  auto cells = normal_cells(1 << 12);
  const auto source = NoiseSource::fast_not_secure(20'260'101);
  for (int64_t b = 0; b < blocks; ++b) {
    const auto numbers = at::zeros({kBlock});
    add_gaussian_noise_({numbers}, 1, source);
    const auto* x = numbers.const_data_ptr<float>();
    for (int64_t i = 0; i < kBlock; ++i) put(cells, x[i]);
  }
  const auto draws = static_cast<double>(blocks * kBlock);
  report_fit(context, "fast_chi2", "deviations of chi2", cells.chi_squared(draws), 3.3, draws);
  report_fit(context, "fast_ks", "KS x sqrt(n)", cells.distance(draws), 1.95, draws);
}

void measure(Context& context) {
  const auto threads = at::get_num_threads();
  at::set_num_threads(1);
  report_rate(context, "secure_rate", "discrete_gaussian, secure, sigma 2^42.28, one thread",
              1e3 / 150, [] { discrete_gaussian({kBlock}, kWide); });
  const auto values = at::zeros({kBlock});
  const auto source = NoiseSource::fast_not_secure(1);
  report_rate(context, "fast_rate", "add_gaussian_noise_, fast_not_secure, float32, one thread",
              1e3 / 800, [&] { add_gaussian_noise_({values}, 1, source); });
  at::set_num_threads(threads);
  const int64_t blocks = context.quick() ? 4 : 954;  // 954 x 2^20: the first above 10^9
  check_discrete(context, blocks);
  check_fast(context, blocks);
}

const bool registered =
    add_claim({.name = "noise_rates",
               .group = "privacy",
               .promise = "secure noise is exact and quick, the other is quicker",
               .measure = measure,
               .minutes = 1,
               .threads_matter = false});

}  // namespace
}  // namespace torchlore::claims
