#include "batch_sizes.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "torchlore/core/error.hpp"

namespace torchlore::privacy {
namespace {

/// log of the largest probability that a binomial number has any one value.
double log_largest_mass(double n, double p) {
  const double mode = std::min(n, std::floor((n + 1) * p));
  return std::lgamma(n + 1) - std::lgamma(mode + 1) - std::lgamma(n - mode + 1) +
         mode * std::log(p) + (n - mode) * std::log1p(-p);
}

/// What a binomial number exceeds with a probability below e^-35, by Bernstein's inequality.
double upper_limit(double mean, double variance) {
  constexpr double kLog = 35;
  return mean + kLog / 3 + std::sqrt(kLog * kLog / 9 + 2 * kLog * variance);
}

}  // namespace

BatchSizes::BatchSizes(int64_t dataset_size, double expected_batch, Sampling sampling)
    : dataset_size_(dataset_size),
      expected_(expected_batch),
      sampling_(sampling),
      most_equal_(std::numeric_limits<int64_t>::max()) {
  const auto n = static_cast<double>(dataset_size);
  if (sampling == Sampling::fixed_size || expected_batch == n) return;
  const double log_mass = log_largest_mass(n, expected_batch / n);
  if (log_mass > -1e-9) return;
  most_equal_ = 1 + static_cast<int64_t>(std::ceil(std::log(1e12) / -log_mass));
}

void BatchSizes::check(int64_t examples) const {
  TORCH_CHECK_VALUE(examples <= dataset_size_, "a logical batch holds ", examples,
                    " examples, but the data set was declared to have ", dataset_size_,
                    "; set dataset_size to what it has");
  const auto n = static_cast<double>(dataset_size_);
  if (sampling_ == Sampling::fixed_size) {
    TORCH_CHECK_VALUE(static_cast<double>(examples) == expected_, "a logical batch holds ",
                      examples, " examples, but the declared fixed size is ", expected_,
                      "; draw the batches by FixedSizeSampler");
    return;
  }
  if (expected_ == n) return;
  const double rest = 1 - expected_ / n;
  const double one = std::floor(upper_limit(expected_, expected_ * rest));
  TORCH_CHECK_VALUE(static_cast<double>(examples) <= one, "a logical batch holds ", examples,
                    " examples, but Poisson samples of ", expected_, " of ", dataset_size_,
                    " hardly ever have more than ", one,
                    ": more is spent than is accounted for; set expected_batch to what the sampler "
                    "draws on average");
  const auto batches = static_cast<double>(batches_ + 1);
  const double all = std::floor(upper_limit(batches * expected_, batches * expected_ * rest));
  TORCH_CHECK_VALUE(total_ + static_cast<double>(examples) <= all, "the last ", batches,
                    " logical batches hold ", total_ + static_cast<double>(examples),
                    " examples together, but Poisson samples of ", expected_, " of ", dataset_size_,
                    " hardly ever have more than ", all,
                    ": more is spent than is accounted for; set expected_batch to what the sampler "
                    "draws on average");
  TORCH_CHECK_VALUE(
      examples != last_ || equal_in_a_row_ < most_equal_, "the last ", equal_in_a_row_ + 1,
      " logical batches have ", examples,
      " examples each, which is no Poisson sampling: the accounting does not hold for "
      "shuffled batches; draw them by PoissonSampler, or by FixedSizeSampler with "
      "sampling = Sampling::fixed_size");
}

void BatchSizes::add(int64_t examples) {
  ++batches_;
  total_ += static_cast<double>(examples);
  equal_in_a_row_ = examples == last_ ? equal_in_a_row_ + 1 : 1;
  last_ = examples;
}

}  // namespace torchlore::privacy
