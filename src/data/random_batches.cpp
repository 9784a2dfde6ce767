#include "torchlore/data/random_batches.hpp"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <unordered_set>

#include "../privacy/noise/noise_draw.hpp"
#include "../privacy/noise/random_bits.hpp"
#include "torchlore/core/error.hpp"
#include "torchlore/core/philox.hpp"
#include "torchlore/data/fixed_size_sampler.hpp"
#include "torchlore/data/poisson_sampler.hpp"

namespace torchlore {
namespace {

// The last 256 streams of a seed belong to the library; permutations and noise have the last two.
constexpr int64_t kSamplingStream = 0xFFFF'FFFD;

/// Where the random bits of one batch come from.
class Bits {
 public:
  Bits() = default;
  virtual ~Bits() = default;
  Bits(const Bits&) = delete;
  Bits& operator=(const Bits&) = delete;
  virtual uint64_t wide() = 0;
  virtual uint64_t below(uint64_t bound) = 0;
};

class SecureBits final : public Bits {
 public:
  SecureBits() : words_(draw_.words(0)), bits_(*words_) {}
  uint64_t wide() override { return bits_.wide(); }
  uint64_t below(uint64_t bound) override { return static_cast<uint64_t>(bits_.below(bound)); }

 private:
  privacy::NoiseDraw draw_{NoiseSource::secure()};
  std::unique_ptr<privacy::RandomWords> words_;
  privacy::RandomBits bits_;
};

class SeededBits final : public Bits {
 public:
  SeededBits(uint64_t seed, int64_t step) : engine_(PhiloxStream(seed, step, kSamplingStream)) {}
  uint64_t wide() override { return engine_(); }
  uint64_t below(uint64_t bound) override { return engine_.below(bound); }

 private:
  PhiloxEngine engine_;
};

/// Each of n with probability `rate`.
std::vector<size_t> poisson_sample(Bits& bits, int64_t n, double rate) {
  std::vector<size_t> drawn;
  const auto all = static_cast<size_t>(n);
  const uint64_t threshold = rate < 1 ? static_cast<uint64_t>(std::ldexp(rate, 64)) : 0;
  for (size_t i = 0; i < all; ++i) {
    if (rate == 1 || bits.wide() < threshold) drawn.push_back(i);
  }
  return drawn;
}

/// k of n, each set with the same probability.
/// Source: Bentley, Floyd (1987), "A sample of brilliance", Communications of the ACM 30 (9).
std::vector<size_t> fixed_size_sample(Bits& bits, int64_t n, int64_t k) {
  std::unordered_set<size_t> set;
  for (auto last = static_cast<size_t>(n - k); last < static_cast<size_t>(n); ++last) {
    const size_t index = bits.below(last + 1);
    set.insert(set.count(index) > 0 ? last : index);
  }
  std::vector<size_t> drawn(set.begin(), set.end());
  std::sort(drawn.begin(), drawn.end());
  return drawn;
}

}  // namespace

/// Of the run's steps, [0, consumed) are trained on and [consumed, drawn) are on their way there.
struct RandomBatches::State {
  int64_t size = 0;
  double expected_batch = 0;
  int64_t steps_per_pass = 0;
  bool fixed_size = false;
  std::optional<uint64_t> seed = std::nullopt;
  int64_t consumed = 0;
  int64_t drawn = 0;
  int64_t pass_end = 0;

  static std::shared_ptr<State> checked(State state, const char* batch_option) {
    check_count("the size of the dataset", state.size);
    TORCH_CHECK_VALUE(
        state.expected_batch > 0 && state.expected_batch <= static_cast<double>(state.size),
        batch_option, " must lie above 0 and be at most the size of the dataset (", state.size,
        "), but is ", state.expected_batch);
    TORCH_CHECK_VALUE(state.steps_per_pass >= 0, "steps_per_pass must be 0 or more, but is ",
                      state.steps_per_pass);
    if (state.steps_per_pass == 0) {
      const double batches = static_cast<double>(state.size) / state.expected_batch;
      state.steps_per_pass = static_cast<int64_t>(std::ceil(std::min(batches, 0x1p62)));
    }
    state.start_pass();
    return std::make_shared<State>(state);
  }

  double rate() const { return expected_batch / static_cast<double>(size); }
  void start_pass() { pass_end = (drawn / steps_per_pass + 1) * steps_per_pass; }
  std::vector<size_t> draw() const {
    std::unique_ptr<Bits> bits;
    if (seed) {
      bits = std::make_unique<SeededBits>(*seed, drawn);
    } else {
      bits = std::make_unique<SecureBits>();
    }
    if (fixed_size) return fixed_size_sample(*bits, size, static_cast<int64_t>(expected_batch));
    return poisson_sample(*bits, size, rate());
  }
};

PoissonSampler::PoissonSampler(int64_t size, const PoissonSamplerOptions& options)
    : RandomBatches(State::checked({.size = size,
                                    .expected_batch = options.expected_batch,
                                    .steps_per_pass = options.steps_per_pass,
                                    .seed = options.seed_not_secure},
                                   "expected_batch")) {}

FixedSizeSampler::FixedSizeSampler(int64_t size, const FixedSizeSamplerOptions& options)
    : RandomBatches(State::checked({.size = size,
                                    .expected_batch = static_cast<double>(options.batch),
                                    .steps_per_pass = options.steps_per_pass,
                                    .fixed_size = true,
                                    .seed = options.seed_not_secure},
                                   "batch")) {}

at::Tensor IndexBatch::tensor() const {
  auto result = at::empty({static_cast<int64_t>(indices_.size())}, at::kLong);
  std::copy(indices_.begin(), indices_.end(), result.mutable_data_ptr<int64_t>());
  return result;
}

void RandomBatches::check_size(int64_t size) const {
  TORCH_CHECK_VALUE(size == state_->size, "the sampler is for ", state_->size,
                    " examples and cannot change to ", size, "; make a new one");
}

void RandomBatches::reset(std::optional<size_t> new_size) {
  if (new_size) check_size(static_cast<int64_t>(*new_size));
  state_->start_pass();
}

std::optional<IndexBatch> RandomBatches::next(size_t /*batch_size*/) {
  auto& s = *state_;
  if (s.drawn >= s.pass_end) return std::nullopt;
  IndexBatch batch(s.draw());
  ++s.drawn;
  return batch;
}

void RandomBatches::consume(int64_t steps) {
  auto& s = *state_;
  TORCH_CHECK_VALUE(steps >= 0 && steps <= s.drawn - s.consumed, "cannot consume ", steps,
                    " steps: ", s.drawn - s.consumed, " are drawn and not yet consumed");
  s.consumed += steps;
}

int64_t RandomBatches::size() const { return state_->size; }
double RandomBatches::expected_batch() const { return state_->expected_batch; }
double RandomBatches::sample_rate() const { return state_->rate(); }
int64_t RandomBatches::steps_per_pass() const { return state_->steps_per_pass; }
int64_t RandomBatches::consumed() const { return state_->consumed; }

StateDict RandomBatches::state_dict() const {
  const auto& s = *state_;
  StateDict state{{"size", state_value(s.size)},
                  {"expected_batch", state_value(s.expected_batch)},
                  {"fixed_size", state_value(int64_t{s.fixed_size})},
                  {"secure", state_value(int64_t{!s.seed})},
                  {"consumed", state_value(s.consumed)}};
  if (s.seed) state["seed"] = state_value(std::bit_cast<int64_t>(*s.seed));
  return state;
}

void RandomBatches::load_state_dict(const StateDict& state) {
  auto& s = *state_;
  const auto consumed = state_int(state, "consumed");
  const auto size = state_int(state, "size");
  const auto batch = state_double(state, "expected_batch");
  const bool fixed_size = state_int(state, "fixed_size") != 0;
  const bool secure = state_int(state, "secure") != 0;
  const auto seed =
      secure ? s.seed : std::optional(std::bit_cast<uint64_t>(state_int(state, "seed")));
  TORCH_CHECK_VALUE(
      fixed_size == s.fixed_size && size == s.size && batch == s.expected_batch,
      "the saved sampler drew ", fixed_size ? "batches of a fixed size, " : "Poisson samples, ",
      batch, " of ", size, " examples; this one draws ",
      s.fixed_size ? "batches of a fixed size, " : "Poisson samples, ", s.expected_batch, " of ",
      s.size, ": what was spent would be accounted for wrongly; resume with the saved settings");
  TORCH_CHECK_VALUE(secure != s.seed.has_value(), "the saved sampler was ",
                    secure ? "secure" : "not secure (it had a seed)",
                    ", and this one is not of that kind; set seed_not_secure as it was");
  TORCH_CHECK_VALUE(consumed >= 0, "the saved sampler has consumed ", consumed,
                    " steps; it must be 0 or more");
  s.seed = seed;
  s.consumed = s.drawn = consumed;
  s.start_pass();
}

}  // namespace torchlore
