#include "torchlore/privacy/dp_aggregator.hpp"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>

#include "../../core/state_parts.hpp"
#include "../quantile_clipping.hpp"
#include "client_update.hpp"
#include "host_pieces.hpp"
#include "stair_sampler.hpp"
#include "torchlore/core/error.hpp"
#include "torchlore/core/tensor_file.hpp"
#include "torchlore/privacy/gaussian_noise.hpp"

namespace torchlore {
namespace {

/// The noise is at least 2^36 units of the sum's grid wide; the sum has room for 2^26 clients then.
constexpr int kFineness = 36;
constexpr double kLargestSum = 0x1p62;

/// The exponent of the sum's unit: a function of public numbers only.
int unit_exponent(double clip_norm, double noise_multiplier) {
  return std::ilogb(clip_norm * std::max(noise_multiplier, 0x1p-10)) - kFineness;
}

/// Adds discrete Gaussian numbers to all sums, one long vector.
void add_noise(const StateDict& sums, int64_t elements, const privacy::Scale& sigma,
               const NoiseSource& source) {
  const privacy::GaussianSampler sampler(sigma, elements);
  const privacy::NoiseDraw draw(source);
  int64_t part = 0;
  for (const auto& [name, sum] : sums) {
    auto* data = sum.mutable_data_ptr<int64_t>();
    for (int64_t begin = 0; begin < sum.numel(); begin += privacy::kChunk) {
      sampler.draw(std::min(privacy::kChunk, sum.numel() - begin), draw, part++,
                   [&](std::span<const int64_t> noise) {
                     for (const int64_t number : noise) *data++ += number;
                   });
    }
  }
}

}  // namespace

const char* to_string(UpdateVerdict verdict) {
  switch (verdict) {
    case UpdateVerdict::accepted:
      return "accepted";
    case UpdateVerdict::late:
      return "late";
    case UpdateVerdict::not_selected:
      return "not_selected";
    case UpdateVerdict::duplicate:
      return "duplicate";
    case UpdateVerdict::unreadable:
      return "unreadable";
    case UpdateVerdict::wrong_tensors:
      return "wrong_tensors";
    case UpdateVerdict::not_finite:
      return "not_finite";
  }
  return "?";
}

DpAggregator::DpAggregator(const StateDict& like, DpAggregatorOptions options)
    : options_(std::move(options)) {
  check_positive("clip_norm of DpAggregator", options_.clip_norm);
  check_in_range("clip_norm of DpAggregator", options_.clip_norm, 1e-100, 1e100);
  check_not_negative("noise_multiplier of DpAggregator", options_.noise_multiplier);
  check_positive("expected_clients of DpAggregator", options_.expected_clients);
  TORCH_CHECK_VALUE(options_.client_rate > 0 && options_.client_rate <= 1,
                    "client_rate of DpAggregator must lie in (0, 1], but is ",
                    options_.client_rate);
  update_noise_ = options_.noise_multiplier;
  if (options_.adaptive) {
    auto& adaptive = *options_.adaptive;
    if (adaptive.count_noise == 0) adaptive.count_noise = options_.expected_clients / 20;
    privacy::check_quantile(adaptive, options_.clip_norm, options_.noise_multiplier,
                            {.options = "AdaptiveBound", .norm = "clip_norm"});
    update_noise_ = privacy::raised_noise(adaptive, update_noise_);
  }
  clip_norm_ = options_.clip_norm;
  elements_ = privacy::check_model(like);
  for (const auto& [name, tensor] : like) {
    like_[name] = tensor.detach();
    sum_[name] = at::zeros(tensor.sizes(), at::kLong);
  }
}

void DpAggregator::check_closed(const char* what) const {
  TORCH_CHECK(!open_, what, " is for between rounds, but round ", rounds_ + 1,
              " is open; finish_round() first");
}

void DpAggregator::start_round(const std::vector<std::string>& selected) {
  check_closed("start_round");
  open_ = true;
  selected_ = {selected.begin(), selected.end()};
  counted_.clear();
  unclipped_ = 0;
  result_ = {.mean = {},
             .round = rounds_ + 1,
             .clip_norm = clip_norm_,
             .rejected = std::move(result_.rejected)};  // what came between the rounds
  for (auto& [name, sum] : sum_) sum.zero_();
}

UpdateVerdict DpAggregator::reject(const std::string& client, UpdateVerdict verdict,
                                   std::string reason) {
  result_.rejected.push_back({client, verdict, std::move(reason)});
  return verdict;
}

UpdateVerdict DpAggregator::add(const std::string& client, const StateDict& update, int64_t round) {
  if (!open_ || (round != 0 && round != rounds_ + 1)) {
    return reject(client, UpdateVerdict::late, "it was made for round " + std::to_string(round));
  }
  if (!selected_.empty() && !selected_.contains(client)) {
    return reject(client, UpdateVerdict::not_selected, "its client was not asked");
  }
  if (counted_.contains(client)) {
    return reject(client, UpdateVerdict::duplicate, "its client's update is in the sum already");
  }
  if (auto text = privacy::difference(like_, update); !text.empty()) {
    return reject(client, UpdateVerdict::wrong_tensors, std::move(text));
  }
  const auto host = privacy::on_host(update);
  const double norm = privacy::norm_of(host);
  if (!std::isfinite(norm)) {
    return reject(client, UpdateVerdict::not_finite, "its norm is not finite");
  }
  const double inverse_unit = std::ldexp(1.0, -unit_exponent(clip_norm_, update_noise_));
  TORCH_CHECK_VALUE(
      static_cast<double>(result_.accepted + 1) * clip_norm_ * inverse_unit < kLargestSum,
      "the sum of ", result_.accepted + 1,
      " updates could overflow; aggregate them in several rounds");
  const double factor = privacy::clip_factor(norm, clip_norm_) * inverse_unit;
  for (const auto& [name, tensor] : host) privacy::accumulate(sum_.at(name), tensor, factor);
  counted_.insert(client);
  unclipped_ += norm <= clip_norm_ ? 1 : 0;
  ++result_.accepted;
  return UpdateVerdict::accepted;
}

UpdateVerdict DpAggregator::add_file(const std::string& client, const std::filesystem::path& path,
                                     int64_t round) {
  StateDict update;
  try {
    // Copied, for it is read twice: a file that changes in between must not escape the clipping.
    for (const auto& [name, tensor] : TensorFile::open(path).tensors())
      update[name] = tensor.clone();
  } catch (const c10::Error& error) {
    return reject(client, UpdateVerdict::unreadable, error.what_without_backtrace());
  }
  return add(client, update, round);
}

AggregatedRound DpAggregator::finish_round() {
  TORCH_CHECK(open_, "finish_round without a round; start_round() begins one");
  const at::NoGradGuard no_grad;
  const int exponent = unit_exponent(clip_norm_, update_noise_);
  if (update_noise_ > 0) {
    // A client's whole numbers have a norm of at most clip_norm / unit + sqrt(elements) / 2.
    const double sensitivity =
        std::ldexp(clip_norm_, -exponent) + std::sqrt(static_cast<double>(elements_)) / 2;
    add_noise(sum_, elements_, privacy::Scale::at_least(update_noise_ * sensitivity),
              options_.noise);
  }
  const double scale = std::ldexp(1.0, exponent) / options_.expected_clients;
  for (const auto& [name, sum] : sum_) {
    result_.mean[name] = (sum.to(at::kDouble) * scale).to(like_.at(name).options());
  }
  if (options_.adaptive) {
    const auto& adaptive = *options_.adaptive;
    const auto count =
        at::full({}, static_cast<double>(unclipped_) - 0.5 * static_cast<double>(result_.accepted),
                 at::kDouble);
    if (update_noise_ > 0) add_gaussian_noise_({count}, adaptive.count_noise, options_.noise);
    clip_norm_ =
        privacy::next_norm(adaptive, clip_norm_, count.item<double>(), options_.expected_clients);
  }
  for (const auto& client : selected_) {
    if (!counted_.contains(client)) result_.missing.push_back(client);
  }
  open_ = false;
  ++rounds_;
  return std::exchange(result_, {});
}

PrivacyLedger DpAggregator::ledger() const {
  PrivacyLedger ledger;
  if (rounds_ == 0) return ledger;
  TORCH_CHECK_VALUE(options_.noise_multiplier > 0,
                    "rounds without noise have no finite epsilon to account for");
  return ledger.add({.noise_multiplier = options_.noise_multiplier,
                     .sample_rate = options_.client_rate,
                     .steps = rounds_});
}

StateDict DpAggregator::state_dict() const {
  check_closed("state_dict");
  StateDict state{{"rounds", state_value(rounds_)}, {"clip_norm", state_value(clip_norm_)}};
  detail::add_below(state, "noise/", options_.noise.state_dict());
  return state;
}

void DpAggregator::load_state_dict(const StateDict& state) {
  check_closed("load_state_dict");
  const int64_t rounds = state_int(state, "rounds");
  const double clip_norm = state_double(state, "clip_norm");
  TORCH_CHECK_VALUE(rounds >= 0,
                    "the state of a DpAggregator has finished 0 or more rounds, but \"rounds\" is ",
                    rounds);
  check_in_range("\"clip_norm\" of a DpAggregator's state", clip_norm, 1e-100, 1e100);
  options_.noise.load_state_dict(detail::state_below(state, "noise/"));
  rounds_ = rounds;
  clip_norm_ = clip_norm;
}

}  // namespace torchlore
