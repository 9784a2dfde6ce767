#include "planned_attention.hpp"

#include <memory>
#include <mutex>
#include <optional>

#include "cpu_attention.hpp"
#include "layout_patterns.hpp"
#include "lowered_attention.hpp"
#include "memory_order.hpp"

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
  const auto result = lowered_forward(*plan, in.query, in.key, in.value, settings.scale);
  auto output = empty_as(in.query, in.value.size(3));
  return {output.copy_(result.out), result.log_sum_exp};
}

Gradients planned_backward(const Tensor& grad_output, const Tensor& grad_log_sum_exp,
                           const Tensor& output, const Tensor& log_sum_exp, const Inputs& in,
                           const Settings& settings) {
  const auto* plan = plan_for(in, settings);
  if (plan == nullptr) {
    return cpu_backward(grad_output, grad_log_sum_exp, output, log_sum_exp, in, settings,
                        tiles_of_call(in, settings));
  }
  const auto found = lowered_backward(*plan, in.query, in.key, in.value, settings.scale,
                                      {output, log_sum_exp, grad_output, grad_log_sum_exp});
  return {found.query, found.key, found.value, {}};
}

}  // namespace torchlore::attention
