#include "torchlore/privacy/rdp.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <utility>

#include "check_delta.hpp"
#include "torchlore/core/error.hpp"

namespace torchlore {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double log_add(double a, double b) {
  if (a < b) std::swap(a, b);
  return b == -kInfinity ? a : a + std::log1p(std::exp(b - a));
}

/// log(e^x - 1) for x > 0.
double log_expm1(double x) {
  return x > 1 ? x + std::log1p(-std::exp(-x)) : std::log(std::expm1(x));
}

/// log(1 + e^x).
double log1p_exp(double x) {
  return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x));
}

// Below, A = E[u^alpha] for u = 1 - q + q e^((2z - 1) / 2 sigma^2) and z of N(0, sigma^2); E[u] = 1.
// What both ways sum up is A - 1, which can be far below the precision of A.

/// A whole order: the binomial sum. Without the exponential it is 1, which leaves
/// A - 1 = sum over k >= 2 of C(alpha, k) (1 - q)^(alpha - k) q^k (e^((k^2 - k) / 2 sigma^2) - 1).
double log_excess_of_whole(double q, double sigma, double alpha) {
  double sum = -kInfinity;
  double binomial = std::log(alpha);  // of k = 1
  for (double k = 2; k <= alpha; ++k) {
    binomial += std::log((alpha - k + 1) / k);
    const double term = binomial + (alpha - k) * std::log1p(-q) + k * std::log(q) +
                        log_expm1((k * k - k) / (2 * sigma * sigma));
    sum = log_add(sum, term);
  }
  return sum;
}

/// log of u^alpha - 1 - alpha (u - 1), for u = 1 + w: 0 or above, since powers above 1, and below 0,
/// are convex.
double log_excess_at(double log_u, double w, double alpha) {
  if (std::abs(w) * (std::abs(alpha) + 1) <
      0.3) {  // the binomial series, without its first two terms
    double term = alpha * (alpha - 1) / 2;
    double sum = term;
    for (double k = 3; k < 14; ++k) {
      term *= (alpha - k + 1) / k * w;
      sum += term;
    }
    return 2 * std::log(std::abs(w)) + std::log(sum);
  }
  const double power = alpha * log_u;
  const double line = 1 + alpha * w;
  if (power < 600) {
    return std::log(std::max(std::exp(power) - line, std::numeric_limits<double>::min()));
  }
  return power + std::log1p(-line * std::exp(-power));
}

/// Any order: the expectation of u^alpha - 1 - alpha (u - 1), which is A - 1 and has no negative
/// terms, by the trapezoidal rule. The integrand is analytic up to |Im z| = pi sigma^2, where u = 0,
/// so the error falls as e^(-2 pi d / h) for any d below, against e^(d^2 / 2 sigma^2) of the Gaussian.
double log_excess_of_any(double q, double sigma, double alpha) {
  const double variance = sigma * sigma;
  const double step = std::min(sigma / 2, variance / 3);
  // The Gaussian's own mass, and that of e^(alpha z / sigma^2) times it, which lies around alpha.
  const double low = -9 * sigma;
  const double high = alpha + 9 * sigma;
  double sum = -kInfinity;
  for (double z = low; z <= high; z += step) {
    const double t = (2 * z - 1) / (2 * variance);
    const double log_u = log_add(std::log1p(-q), std::log(q) + t);
    const double w = t < 600 ? q * std::expm1(t) : kInfinity;
    const double at = t < 600 ? log_excess_at(log_u, w, alpha) : alpha * log_u;
    if (std::isfinite(at)) sum = log_add(sum, at - z * z / (2 * variance));
  }
  return sum + std::log(step) - 0.5 * std::log(2 * M_PI * variance);
}

// Batches of a fixed size, with P and Q the results with and without the change: for an order of
// likelihoods t the difference of results on neighbours, E[(ratio - t)+], is at most that between
// R = (1 - q) Q + q P and Q for t >= 1, and between Q and R for t < 1. A Renyi divergence is an integral
// over t of these differences times positive weights, which comes to the expectation over z of N(0, sigma^2)
// of (u^alpha - 1 - alpha (u - 1)) + (u^(1 - alpha) - 1 - (1 - alpha) (u - 1)), where u = R / Q is above 1.

/// Points and weights of Gauss-Legendre's rule on [-1, 1], by Newton's method on the polynomial.
struct GaussLegendre {
  static constexpr int kPoints = 16;
  GaussLegendre() {
    for (int i = 0; i < kPoints; ++i) {
      double x = std::cos(M_PI * (i + 0.75) / (kPoints + 0.5));
      double slope = 0;
      for (int iteration = 0; iteration < 8; ++iteration) {
        double before = 1;
        double here = x;
        for (int n = 2; n <= kPoints; ++n) {
          before = std::exchange(here, ((2 * n - 1) * x * here - (n - 1) * before) / n);
        }
        slope = kPoints * (x * here - before) / (x * x - 1);
        x -= here / slope;
      }
      point[static_cast<size_t>(i)] = x;
      log_weight[static_cast<size_t>(i)] = std::log(2 / ((1 - x * x) * slope * slope));
    }
  }
  std::array<double, kPoints> point{};
  std::array<double, kPoints> log_weight{};
};

double log_excess_of_fixed_size(double q, double sigma, double alpha) {
  static const GaussLegendre rule;
  const double variance = sigma * sigma;
  const double panel = std::min(sigma, variance);
  const double high = alpha + 9 * sigma;
  double sum = -kInfinity;
  for (double low = 0.5; low < high; low += panel) {
    for (size_t i = 0; i < rule.point.size(); ++i) {
      const double z = low + panel / 2 * (1 + rule.point[i]);
      const double t = (2 * z - 1) / (2 * variance);
      const double w = t < 600 ? q * std::expm1(t) : kInfinity;
      const double log_u = t < 600 ? std::log1p(w) : std::log(q) + t;
      double at = alpha * log_u;
      if (t < 600) {
        at = log_add(log_excess_at(log_u, w, alpha), log_excess_at(log_u, w, 1 - alpha));
      }
      sum = log_add(sum, at - z * z / (2 * variance) + rule.log_weight[i]);
    }
  }
  return sum + std::log(panel / 2) - 0.5 * std::log(2 * M_PI * variance);
}

double rdp_of(const PrivacyEvent& event, double alpha) {
  if (event.noise == Noise::gaussian) {
    const bool fixed = event.sampling == Sampling::fixed_size;
    return (fixed ? rdp_fixed_size_gaussian : rdp_sampled_gaussian)(event.sample_rate,
                                                                    event.noise_multiplier, alpha);
  }
  TORCH_CHECK_NOT_IMPLEMENTED(
      event.sample_rate == 1,
      "the RDP accountant has no theorem for a sampled Laplace mechanism (its "
      "sample_rate is ",
      event.sample_rate, "); take pld_epsilon");
  return rdp_laplace(event.noise_multiplier, alpha);
}

double total_rdp(const PrivacyLedger& ledger, double alpha) {
  double sum = 0;
  for (const auto& event : ledger.events()) {
    sum += static_cast<double>(event.steps) * rdp_of(event, alpha);
  }
  return sum;
}

void check_orders(const std::vector<double>& orders) {
  TORCH_CHECK_VALUE(!orders.empty(), "RDP needs at least one order, but got none");
  for (const double alpha : orders) {
    TORCH_CHECK_VALUE(alpha > 1 && std::isfinite(alpha), "an order of RDP must be above 1, but is ",
                      alpha);
  }
}

double epsilon_of_order(double rdp, double alpha, double delta) {
  // With so large a delta nothing is left to prove: the total variation is below it.
  if (delta * delta + std::expm1(-rdp) > 0) return 0;
  const double epsilon =
      rdp + std::log1p(-1 / alpha) - (std::log(delta) + std::log(alpha)) / (alpha - 1);
  return std::max(epsilon, 0.0);
}

double delta_of_order(double rdp, double alpha, double epsilon) {
  const double log_delta = (alpha - 1) * (rdp - epsilon + std::log1p(-1 / alpha)) - std::log(alpha);
  const double variation = std::sqrt(-std::expm1(-rdp));
  return std::min({1.0, std::exp(log_delta), variation});
}

template <typename F>
RdpBound best(const PrivacyLedger& ledger, const std::vector<double>& orders, double if_none,
              const F& bound_of) {
  check_orders(orders);
  RdpBound found{if_none, 0};
  for (const double alpha : orders) {
    const double bound = bound_of(total_rdp(ledger, alpha), alpha);
    if (bound < found.value) found = {bound, alpha};
  }
  return found;
}

}  // namespace

double rdp_sampled_gaussian(double sample_rate, double noise_multiplier, double alpha) {
  check_in_range("sample_rate", sample_rate, 0, 1);
  check_positive("noise_multiplier", noise_multiplier);
  check_orders({alpha});
  if (sample_rate == 0) return 0;
  if (sample_rate == 1) return alpha / (2 * noise_multiplier * noise_multiplier);
  const bool whole = alpha == std::floor(alpha);
  const double log_excess = whole ? log_excess_of_whole(sample_rate, noise_multiplier, alpha)
                                  : log_excess_of_any(sample_rate, noise_multiplier, alpha);
  return log1p_exp(log_excess) / (alpha - 1);
}

double rdp_fixed_size_gaussian(double sample_rate, double noise_multiplier, double alpha) {
  check_in_range("sample_rate", sample_rate, 0, 1);
  check_positive("noise_multiplier", noise_multiplier);
  check_orders({alpha});
  if (sample_rate == 0) return 0;
  const double all = alpha / (2 * noise_multiplier * noise_multiplier);
  if (sample_rate == 1) return all;
  const double sampled =
      log1p_exp(log_excess_of_fixed_size(sample_rate, noise_multiplier, alpha)) / (alpha - 1);
  return std::min(sampled, all);
}

double rdp_laplace(double noise_multiplier, double alpha) {
  check_positive("noise_multiplier", noise_multiplier);
  check_orders({alpha});
  const double shift = 1 / noise_multiplier;
  const double up = std::log(alpha / (2 * alpha - 1)) + (alpha - 1) * shift;
  const double down = std::log((alpha - 1) / (2 * alpha - 1)) - alpha * shift;
  return log_add(up, down) / (alpha - 1);
}

const std::vector<double>& default_rdp_orders() {
  static const std::vector<double> orders = [] {
    std::vector<double> all;
    for (int tenth = 11; tenth < 110; ++tenth) all.push_back(tenth / 10.0);
    for (int order = 11; order <= 64; ++order) all.push_back(order);
    all.insert(all.end(), {80, 96, 128, 160, 192, 256, 384, 512, 1024});
    return all;
  }();
  return orders;
}

RdpBound rdp_epsilon(const PrivacyLedger& ledger, double delta, const std::vector<double>& orders) {
  detail::check_delta(delta);
  if (ledger.empty()) return {};
  return best(ledger, orders, kInfinity,
              [&](double rdp, double alpha) { return epsilon_of_order(rdp, alpha, delta); });
}

RdpBound rdp_delta(const PrivacyLedger& ledger, double epsilon, const std::vector<double>& orders) {
  check_not_negative("epsilon", epsilon);
  if (ledger.empty()) return {};
  return best(ledger, orders, 1.0,
              [&](double rdp, double alpha) { return delta_of_order(rdp, alpha, epsilon); });
}

}  // namespace torchlore
