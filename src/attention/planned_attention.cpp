#include "planned_attention.hpp"

#include <memory>
#include <mutex>
#include <optional>

#include "cpu_attention.hpp"
#include "layout_patterns.hpp"
#include "lowered_attention.hpp"

namespace torchlore::attention {
namespace {

using at::Tensor;
using MaybePlan = std::optional<Plan>;

/// The layout's plan, made when it is first asked for and kept with the layout's tiles.
const MaybePlan& plan_of(const BlockLayout& layout) {
  auto& kept = layout.patterns().plan;
  std::call_once(kept.once, [&] { kept.value = std::make_shared<const MaybePlan>(lower(layout)); });
  return *static_cast<const MaybePlan*>(kept.value.get());
}

/// The plan to take for a call, or nullptr for the layout's tiles. A plan moves rows to other places, so
/// what depends on positions stays with the tiles.
const Plan* plan_for(const Inputs& in, const Settings& settings) {
  if (in.bias || in.alibi_slopes || settings.dropout > 0) return nullptr;
  const auto& plan = plan_of(settings.layout());
  return plan ? &*plan : nullptr;
}

}  // namespace

std::tuple<Tensor, Tensor> planned_forward(const Inputs& in, const Settings& settings) {
  const auto* plan = plan_for(in, settings);
  if (plan == nullptr) return cpu_forward(in, settings, tiles_of_call(in, settings));
  return lowered_forward(*plan, in, settings);
}

Gradients planned_backward(const Tensor& grad_output, const Tensor& grad_log_sum_exp,
                           const Tensor& output, const Tensor& log_sum_exp, const Inputs& in,
                           const Settings& settings) {
  const auto* plan = plan_for(in, settings);
  if (plan == nullptr) {
    return cpu_backward(grad_output, grad_log_sum_exp, output, log_sum_exp, in, settings,
                        tiles_of_call(in, settings));
  }
  return lowered_backward(*plan, grad_output, grad_log_sum_exp, output, log_sum_exp, in, settings);
}

}  // namespace torchlore::attention
