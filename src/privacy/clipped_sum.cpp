#include "torchlore/privacy/clipped_sum.hpp"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <ostream>

#include "clip_groups.hpp"
#include "per_sample_pass.hpp"

namespace torchlore {
namespace {

using detail::ClipGroups;
using detail::PassPurpose;
using detail::PerSamplePass;

void check_max_norm(double max_norm) {
  TORCH_CHECK_VALUE(std::isfinite(max_norm) && max_norm > 0,
                    "max_norm must be finite and above 0, but is ", max_norm,
                    "; without a bound on each example there is no privacy");
}

/// The squared norms before clipping: [groups, B] on the host. The one host sync.
at::Tensor squares_of(const PerSamplePass& pass, const ClipGroups& groups) {
  std::vector<at::Tensor> sums(groups.max_norms.size());
  for (size_t i = 0; i < pass.size(); ++i) {
    auto& sum = sums[groups.of(pass.name(i))];
    sum = sum.defined() ? sum + pass.squares(i) : pass.squares(i);
  }
  for (auto& sum : sums) {
    if (!sum.defined()) sum = at::zeros({pass.examples()}, pass.options());
  }
  return at::stack(sums).cpu();
}

/// What becomes of each example, on the host: a number at a time costs less than an op does.
struct Decision {
  at::Tensor norms, factors;  // [B, groups] float64
  at::Tensor dropped;         // [B] bool
  int64_t dropped_count = 0, clipped_count = 0;

  Decision(const at::Tensor& squares, const ClipGroups& groups, const ExampleClipping& clipping)
      : norms(at::empty({squares.size(1), squares.size(0)}, squares.options())),
        factors(at::empty_like(norms)),
        dropped(at::empty({squares.size(1)}, squares.options().dtype(at::kBool))) {
    const int64_t count = squares.size(0), examples = squares.size(1);
    const auto* square = squares.const_data_ptr<double>();
    auto* const norm = norms.mutable_data_ptr<double>();
    auto* const factor = factors.mutable_data_ptr<double>();
    auto* const drops = dropped.mutable_data_ptr<bool>();
    for (int64_t i = 0; i < examples; ++i) {
      bool is_finite = true, is_longer = false;
      for (int64_t g = 0; g < count; ++g) {
        const double limit = groups.max_norms[static_cast<size_t>(g)];
        const double length = std::sqrt(square[g * examples + i]);
        norm[i * count + g] = length;
        factor[i * count + g] = factor_of(length, limit, clipping);
        is_finite = is_finite && std::isfinite(length);
        is_longer = is_longer || length > limit;
      }
      drops[i] = !is_finite;
      if (!is_finite) std::fill_n(factor + i * count, count, 0.0);
      dropped_count += is_finite ? 0 : 1;
      clipped_count += is_finite && is_longer ? 1 : 0;
    }
    if (clipping.kind() == ExampleClipping::Kind::automatic) clipped_count = 0;
  }

 private:
  static double factor_of(double norm, double limit, const ExampleClipping& clipping) {
    if (clipping.kind() == ExampleClipping::Kind::automatic) {
      return limit / (norm + clipping.gamma());
    }
    return norm > limit ? limit / norm : 1;
  }
};

/// Adds the sums, all of which were made before.
void add_to_gradients(const PerSamplePass& pass, const std::vector<at::Tensor>& sums) {
  for (size_t i = 0; i < sums.size(); ++i) {
    if (!sums[i].defined()) continue;
    auto& gradient = pass.parameter(i).mutable_grad();
    if (gradient.defined()) {
      gradient.add_(sums[i]);
    } else {
      gradient = sums[i].detach();  // zero_grad() refuses a view of something else
    }
  }
}

}  // namespace

ExampleClipping ExampleClipping::flat(double max_norm) {
  check_max_norm(max_norm);
  ExampleClipping result;
  result.max_norm_ = max_norm;
  return result;
}

ExampleClipping ExampleClipping::per_layer(double max_norm) {
  auto result = flat(max_norm);
  result.kind_ = Kind::per_layer;
  return result;
}

ExampleClipping ExampleClipping::per_group(std::vector<ClipGroup> groups) {
  TORCH_CHECK_VALUE(!groups.empty(), "per_group needs at least one group of parameters");
  double squares = 0;
  for (const auto& group : groups) {
    check_max_norm(group.max_norm);
    squares += group.max_norm * group.max_norm;
  }
  auto result = flat(std::sqrt(squares));
  result.kind_ = Kind::per_group;
  result.groups_ = std::move(groups);
  return result;
}

ExampleClipping ExampleClipping::automatic(double max_norm, double gamma) {
  auto result = flat(max_norm);
  TORCH_CHECK_VALUE(std::isfinite(gamma) && gamma > 0, "gamma must be finite and above 0, but is ",
                    gamma);
  result.kind_ = Kind::automatic;
  result.gamma_ = gamma;
  return result;
}

double ExampleClipping::sensitivity() const { return max_norm_; }

std::ostream& operator<<(std::ostream& out, const ExampleClipping& clipping) {
  using Kind = ExampleClipping::Kind;
  switch (clipping.kind()) {
    case Kind::flat:
      return out << "flat(" << clipping.max_norm() << ')';
    case Kind::per_layer:
      return out << "per_layer(" << clipping.max_norm() << ')';
    case Kind::per_group:
      return out << "per_group(" << clipping.groups().size() << " groups)";
    case Kind::automatic:
      return out << "automatic(" << clipping.max_norm() << ", " << clipping.gamma() << ')';
  }
  return out;
}

ClippedSum add_clipped_sum(const at::Tensor& losses, const torch::nn::Module& model,
                           const ExampleClipping& clipping, const PerSampleOptions& options) {
  const auto parameters = detail::trainable_parameters(model);
  const ClipGroups groups(parameters, clipping);
  PerSamplePass pass(losses, parameters, options, PassPurpose::sum);
  pass.check_gradients();
  pass.run();
  const Decision decision(squares_of(pass, groups), groups, clipping);
  const auto device = pass.options().device();
  ClippedSum result{.norms = decision.norms.to(device),
                    .factors = decision.factors.to(device),
                    .examples = pass.examples(),
                    .dropped = decision.dropped_count,
                    .clipped = decision.clipped_count,
                    .sensitivity = clipping.sensitivity()};
  if (result.dropped > 0) pass.drop(decision.dropped.to(device));
  std::vector<at::Tensor> sums(pass.examples() > 0 ? pass.size() : 0);
  // What is kept makes room for the others' sums; the last layers make room for the first ones', which
  // need their inputs no more.
  for (const bool is_kept : {true, false}) {
    for (size_t i = sums.size(); i-- > 0;) {
      if (sums[i].defined() || pass.is_kept(i) != is_kept) continue;
      const auto group = static_cast<int64_t>(groups.of(pass.name(i)));
      sums[i] = pass.weighted_sum(i, result.factors.select(1, group));
    }
  }
  add_to_gradients(pass, sums);
  return result;
}

}  // namespace torchlore
