#include "stair_sampler.hpp"

#include <openssl/crypto.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "exp_interval.hpp"
#include "torchlore/core/error.hpp"

namespace torchlore::privacy {
namespace {

using kernels::kStairCells;
using kernels::kStairLanes;
using kernels::kStairWords;

constexpr uint64_t kAllWeight = uint64_t{kStairCells} << 32;
constexpr size_t kTail = kStairCells - 1;

/// From here on a weight is its cell's share of the target to 2^-22 of itself; the vector loop takes
/// the two for equal.
constexpr uint64_t kLeastFastWeight = uint64_t{1} << 22;

uint128 square(uint128 x) { return x * x; }

/// a × b × 2^-64 rounded up.
uint64_t multiply_up(uint64_t a, uint64_t b) {
  const uint128 product = uint128{a} * b;
  return static_cast<uint64_t>(product >> 64) + (static_cast<uint64_t>(product) != 0 ? 1 : 0);
}

/// Upper bounds of exp(-(j w)^2 / (2 sigma^2)) in units of 2^-64, but 1 for cell 0 is 2^64 - 1 units
/// (cell 0 gets a weight of its own). Each from the one before: exp(-(j + 1)^2 x) = exp(-j^2 x)
/// exp(-(2 j + 1) x).
std::array<uint64_t, kStairCells> upper_bounds(uint128 numerator, uint128 denominator) {
  const auto bounds = exp_interval(numerator, denominator, 2);
  const uint64_t first = bounds.upper.limb(0) + 1;
  const uint64_t first_squared = multiply_up(first, first);
  std::array<uint64_t, kStairCells> result{};
  result[0] = ~uint64_t{0};
  uint64_t ratio = first;
  for (size_t j = 1; j < result.size(); ++j) {
    result[j] = j == 1 ? first : multiply_up(result[j - 1], ratio);
    ratio = multiply_up(ratio, first_squared);
  }
  return result;
}

}  // namespace

StairSampler::StairSampler(const Scale& sigma)
    : sigma_(sigma), log2_width_(std::ilogb(std::min(sigma.value(), 0x1p42)) - 2) {
  check_in_range("sigma of the stair sampler", sigma.value(), kLeast, kMost);
  choose_weights();
  make_alias();
  const auto slow = std::find_if(weights_.begin(), weights_.end(),
                                 [](uint64_t weight) { return weight < kLeastFastWeight; });
  lookup_.first_slow = static_cast<int32_t>(slow - weights_.begin());
  lookup_.shift = 40 - log2_width_;
  lookup_.scale = static_cast<float>(std::ldexp(1 / sigma.value(), 16 - lookup_.shift));
}

void StairSampler::choose_weights() {
  // (w / sigma)^2 / 2 = 4^(k + q) / (2 S^2), with k + q <= 40 and S < 2^44: below 2^81 / 2^89.
  const uint128 numerator = uint128{1} << (2 * (log2_width_ + sigma_.shift));
  const auto bounds = upper_bounds(numerator, 2 * square(sigma_.numerator));
  uint128 total = 0;
  for (size_t j = 0; j < kTail; ++j) total += bounds[j];
  // Each weight is rounded up by one at most: so much is left for that, and for the tail.
  target_ = static_cast<uint64_t>((uint128{kAllWeight - 2 * kStairCells} << 64) / (total + 1));
  for (size_t j = 1; j < kTail; ++j) weights_[j] = multiply_up(target_, bounds[j]);
  weights_[kTail] = 1;
  weights_[0] = kAllWeight - std::accumulate(weights_.begin() + 1, weights_.end(), uint64_t{0});
  TORCH_INTERNAL_ASSERT(weights_[0] >= target_ && weights_[0] < kAllWeight);
}

void StairSampler::make_alias() {
  // Vose's method in whole numbers: column c keeps itself for threshold / 2^32 of its coins.
  constexpr uint64_t kFull = uint64_t{1} << 32;
  auto left = weights_;
  std::vector<size_t> small, large;
  for (size_t j = 0; j < left.size(); ++j) (left[j] < kFull ? small : large).push_back(j);
  while (!small.empty()) {
    const size_t s = small.back(), l = large.back();
    small.pop_back();
    lookup_.threshold[s] = static_cast<uint32_t>(left[s]);
    lookup_.alias[s] = static_cast<uint32_t>(l);
    left[l] -= kFull - left[s];
    if (left[l] < kFull) {
      large.pop_back();
      small.push_back(l);
    }
  }
  for (const size_t l : large) lookup_.alias[l] = static_cast<uint32_t>(l);  // whatever the coin
}

bool StairSampler::decide(const kernels::StairProposal& proposal, RandomBits& bits, int64_t* y,
                          size_t limbs) const {
  const uint32_t a = proposal.words[0], column = a % kStairCells;
  uint64_t cell = proposal.words[1] < lookup_.threshold[column] ? column : lookup_.alias[column];
  const uint64_t weight = weights_[cell];
  int doublings = 0;
  if (cell == kTail) {              // cell 127 + g of the tail has weight × 2^-(g + 1)
    constexpr int kLongest = 1000;  // reached with probability 2^-1039
    doublings = 1;
    for (; bits.bit(); ++cell) {
      TORCH_CHECK(++doublings < kLongest, "the source of random bits is broken: it repeats itself");
    }
  }
  const uint64_t offset = (uint64_t{a >> 8} << 16 | (proposal.words[2] & 0xffff)) >> lookup_.shift;
  const uint64_t magnitude = (cell << log2_width_) + offset;
  const bool negative = (a >> 7 & 1) != 0;
  if (negative && magnitude == 0) return false;  // or 0 would count twice
  const auto coin = static_cast<uint16_t>(proposal.words[2] >> 16);
  if (!keep(magnitude, weight, doublings, coin, bits, limbs)) return false;
  *y = negative ? -static_cast<int64_t>(magnitude) : static_cast<int64_t>(magnitude);
  return true;
}

bool StairSampler::keep(uint64_t y, uint64_t weight, int doublings, uint16_t coin, RandomBits& bits,
                        size_t limbs) const {
  // A uniform number U, of which the coin is the beginning, is compared with target 2^doublings
  // exp(-y^2 / (2 sigma^2)) / weight. y 2^q < 2^52: below 2^104 / 2^89.
  const uint128 numerator = square(uint128{y} << sigma_.shift);
  const uint128 denominator = 2 * square(sigma_.numerator);
  std::vector<uint64_t> digits{uint64_t{coin} << 48 | bits.wide() >> 16};
  for (;; limbs *= 2) {
    while (digits.size() < limbs) digits.push_back(bits.wide());
    FixedPoint below(limbs);
    for (size_t i = 0; i < limbs; ++i) below.set_limb(i, digits[i]);
    FixedPoint above = below;
    above.step_up();  // U lies between the two
    below *= weight;
    above *= weight;
    auto bound = exp_interval(numerator, denominator, limbs);
    for (auto* e : {&bound.lower, &bound.upper}) {
      *e *= target_;
      for (int i = 0; i < doublings; ++i) *e *= 2;
    }
    if (above <= bound.lower) return true;
    if (bound.upper <= below) return false;
  }
}

void StairSampler::draw(int64_t count, const NoiseDraw& draw, int64_t part,
                        const NoiseSink& sink) const {
  constexpr int64_t kGroups = 64;  // 20 KiB of words and numbers
  struct Context {
    const StairSampler& sampler;
    const NoiseDraw& draw;
    int64_t part;
  } context{*this, draw, part};
  const auto decide_one = [](void* pointer, const kernels::StairProposal& proposal, int64_t* y) {
    const auto& c = *static_cast<const Context*>(pointer);
    const auto more = c.draw.more_words(c.part, proposal.index);
    RandomBits bits(*more);
    return c.sampler.decide(proposal, bits, y);
  };
  alignas(64) std::array<uint32_t, kGroups * kStairWords> words;
  std::array<int64_t, kGroups * kStairLanes> kept;
  const auto stream = draw.words(part);
  int64_t proposals = 0;
  while (count > 0) {
    const int64_t groups = std::min(kGroups, count / kStairLanes + 1);
    stream->fill(std::span(words).first(static_cast<size_t>(groups * kStairWords)));
    const int64_t found = kernels::noise_kernels().stair(lookup_, words.data(), groups, proposals,
                                                         decide_one, &context, kept.data());
    proposals += groups * kStairLanes;
    const int64_t taken = std::min(found, count);
    sink(std::span(kept).first(static_cast<size_t>(taken)));
    count -= taken;
  }
  OPENSSL_cleanse(words.data(), sizeof(words));
  OPENSSL_cleanse(kept.data(), sizeof(kept));
}

GaussianSampler::GaussianSampler(const Scale& sigma, int64_t count) : sigma_(sigma) {
  constexpr int64_t kWorthATable = 64;  // a table costs as much as some 50 draws without one
  const double value = sigma.value();
  if (count >= kWorthATable && value >= StairSampler::kLeast && value <= StairSampler::kMost) {
    stair_ = std::make_unique<const StairSampler>(sigma);
  }
}

void GaussianSampler::draw(int64_t count, const NoiseDraw& draw, int64_t part,
                           const NoiseSink& sink) const {
  if (stair_ != nullptr) return stair_->draw(count, draw, part, sink);
  draw_one_by_one(count, draw, part, sink,
                  [this](RandomBits& bits) { return draw_discrete_gaussian(bits, sigma_); });
}

void LaplaceSampler::draw(int64_t count, const NoiseDraw& draw, int64_t part,
                          const NoiseSink& sink) const {
  draw_one_by_one(count, draw, part, sink,
                  [this](RandomBits& bits) { return draw_discrete_laplace(bits, scale_); });
}

}  // namespace torchlore::privacy
