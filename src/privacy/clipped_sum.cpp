#include "torchlore/privacy/clipped_sum.hpp"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <c10/util/Exception.h>

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

/// [B, groups]: the norms before clipping.
at::Tensor norms_of(const PerSamplePass& pass, const ClipGroups& groups) {
  const auto groups_count = static_cast<int64_t>(groups.max_norms.size());
  auto squares = at::zeros({groups_count, pass.examples()}, pass.options());
  for (size_t i = 0; i < pass.size(); ++i) {
    squares[static_cast<int64_t>(groups.of(pass.name(i)))].add_(pass.squares(i));
  }
  return squares.sqrt_().t();
}

/// [B, groups], without regard to examples that are not finite.
at::Tensor factors_of(const at::Tensor& norms, const ClipGroups& groups,
                      const ExampleClipping& clipping) {
  const auto limits = at::tensor(groups.max_norms, norms.options());
  if (clipping.kind() == ExampleClipping::Kind::automatic) {
    return limits / (norms + clipping.gamma());
  }
  return (limits / norms).clamp_max(1);  // a gradient of 0: infinity, so 1
}

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
  const auto norms = norms_of(pass, groups);
  const auto host = norms.cpu();
  const auto dropped = host.isfinite().all(1).logical_not();
  const auto is_longer = host > at::tensor(groups.max_norms, host.options());
  ClippedSum result{.norms = norms,
                    .factors = factors_of(norms, groups, clipping),
                    .examples = pass.examples(),
                    .dropped = dropped.sum().item<int64_t>(),
                    .sensitivity = clipping.sensitivity()};
  if (clipping.kind() != ExampleClipping::Kind::automatic) {
    result.clipped = is_longer.any(1).logical_and(dropped.logical_not()).sum().item<int64_t>();
  }
  if (result.dropped > 0) {
    const auto there = dropped.to(norms.device());
    pass.drop(there);
    result.factors = result.factors.masked_fill(there.unsqueeze(1), 0);
  }
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
