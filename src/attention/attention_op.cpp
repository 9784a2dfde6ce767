#include "attention_op.hpp"

#include <ATen/Functions.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>
#include <torch/library.h>

#include <limits>

#include "cpu_attention.hpp"
#include "flash_attention.hpp"
#include "generic_attention.hpp"
#include "memory_order.hpp"
#include "planned_attention.hpp"

namespace torchlore::attention {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using PatternPtr = c10::intrusive_ptr<Pattern>;
using Output = std::tuple<Tensor, Tensor>;
using GradientTuple = std::tuple<Tensor, Tensor, Tensor, Tensor>;

constexpr const char* kForwardSchema =
    "sparse_attention(Tensor query, Tensor key, Tensor value, Tensor? bias, Tensor? alibi_slopes, "
    "__torch__.torch.classes.torchlore.AttentionPattern pattern, float scale, int query_offset, "
    "float dropout, int dropout_seed) -> (Tensor output, Tensor log_sum_exp)";
constexpr const char* kBackwardSchema =
    "sparse_attention_backward(Tensor grad_output, Tensor? grad_log_sum_exp, Tensor output, "
    "Tensor log_sum_exp, Tensor query, Tensor key, Tensor value, Tensor? bias, "
    "Tensor? alibi_slopes, __torch__.torch.classes.torchlore.AttentionPattern pattern, "
    "float scale, int query_offset, float dropout, int dropout_seed, bool bias_gradient) -> "
    "(Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad_bias)";

using ForwardSignature = Output(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&,
                                const OptionalTensor&, const PatternPtr&, double, int64_t, double,
                                int64_t);
using BackwardSignature = GradientTuple(const Tensor&, const OptionalTensor&, const Tensor&,
                                        const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                        const OptionalTensor&, const OptionalTensor&,
                                        const PatternPtr&, double, int64_t, double, int64_t, bool);

void register_ops();

const c10::TypedOperatorHandle<ForwardSignature>& forward_op() {
  static const auto op = [] {
    register_ops();
    return c10::Dispatcher::singleton()
        .findSchemaOrThrow("torchlore::sparse_attention", "")
        .typed<ForwardSignature>();
  }();
  return op;
}

const c10::TypedOperatorHandle<BackwardSignature>& backward_op() {
  static const auto op = [] {
    register_ops();
    return c10::Dispatcher::singleton()
        .findSchemaOrThrow("torchlore::sparse_attention_backward", "")
        .typed<BackwardSignature>();
  }();
  return op;
}

Gradients call_backward(const Tensor& grad_output, const Tensor& grad_log_sum_exp,
                        const Tensor& output, const Tensor& log_sum_exp, const Inputs& in,
                        const Settings& s, bool bias_gradient) {
  const OptionalTensor grad_sums =
      grad_log_sum_exp.defined() ? OptionalTensor(grad_log_sum_exp) : std::nullopt;
  auto [query, key, value, bias] =
      backward_op().call(grad_output, grad_sums, output, log_sum_exp, in.query, in.key, in.value,
                         in.bias, in.alibi_slopes, s.pattern, s.scale, s.query_offset, s.dropout,
                         s.dropout_seed, bias_gradient);
  return {query, key, value, bias};
}

// Autograd.

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Whether there is no score at all.
bool is_empty(const Inputs& in) {
  return in.query.size(0) == 0 || in.query.size(2) == 0 || in.key.size(2) == 0;
}

OptionalTensor if_defined(const Tensor& x) {
  return x.defined() ? OptionalTensor(x) : std::nullopt;
}

/// What a forward in progress has made, for its caller to clear up.
struct Made {
  AutogradContext* context = nullptr;
  Tensor output;
};

struct SparseAttention : torch::autograd::Function<SparseAttention> {
  static variable_list forward(AutogradContext* context, const Tensor& query, const Tensor& key,
                               const Tensor& value, const OptionalTensor& bias,
                               const OptionalTensor& alibi_slopes, const Settings& settings,
                               Made* made) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [output, log_sum_exp] = call_op({query, key, value, bias, alibi_slopes}, settings);
    context->set_materialize_grads(false);
    context->save_for_backward({query, key, value, bias.value_or(Tensor()),
                                alibi_slopes.value_or(Tensor()), output, log_sum_exp});
    auto& data = context->saved_data;
    data["pattern"] = settings.pattern;
    data["scale"] = settings.scale;
    data["query_offset"] = settings.query_offset;
    data["dropout"] = settings.dropout;
    data["dropout_seed"] = settings.dropout_seed;
    *made = {context, output};
    return {output, log_sum_exp};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    variable_list result(7);  // of the last three arguments there is none
    if (!gradients[0].defined() && !gradients[1].defined()) return result;
    const auto saved = context->get_saved_variables();
    const Inputs inputs{saved[0], saved[1], saved[2], if_defined(saved[3]), if_defined(saved[4])};
    const auto settings = saved_settings(*context);
    const auto grad_output = gradients[0].defined() ? gradients[0] : at::zeros_like(saved[5]);
    const bool bias_gradient = inputs.bias && context->needs_input_grad(3);
    const auto found =
        at::GradMode::is_enabled() && !is_empty(inputs)
            ? differentiable(grad_output, gradients[1], inputs, settings, bias_gradient)
            : below_autograd(grad_output, gradients[1], saved[5], saved[6], inputs, settings,
                             bias_gradient);
    result[0] = found.query;
    result[1] = found.key;
    result[2] = found.value;
    if (bias_gradient) result[3] = found.bias;
    return result;
  }

 private:
  static Settings saved_settings(const AutogradContext& context) {
    const auto& data = context.saved_data;
    return {data.at("pattern").toCustomClass<Pattern>(), data.at("scale").toDouble(),
            data.at("query_offset").toInt(), data.at("dropout").toDouble(),
            data.at("dropout_seed").toInt()};
  }

  static Gradients below_autograd(const Tensor& grad_output, const Tensor& grad_log_sum_exp,
                                  const Tensor& output, const Tensor& log_sum_exp,
                                  const Inputs& inputs, const Settings& settings,
                                  bool bias_gradient) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return call_backward(grad_output, grad_log_sum_exp, output, log_sum_exp, inputs, settings,
                         bias_gradient);
  }

  /// Backward that is itself recorded: output and log-sum-exp depend on the inputs again.
  static Gradients differentiable(const Tensor& grad_output, const Tensor& grad_log_sum_exp,
                                  const Inputs& inputs, const Settings& settings,
                                  bool bias_gradient) {
    const auto tiles = tiles_of_call(inputs, settings);
    const auto [output, log_sum_exp] = generic_forward(inputs, settings, tiles);
    return generic_backward(grad_output, grad_log_sum_exp, output, log_sum_exp, inputs, settings,
                            tiles, bias_gradient);
  }
};

Output autograd_kernel(const Tensor& query, const Tensor& key, const Tensor& value,
                       const OptionalTensor& bias, const OptionalTensor& alibi_slopes,
                       const PatternPtr& pattern, double scale, int64_t query_offset,
                       double dropout, int64_t dropout_seed) {
  Made made;
  try {
    const auto result = SparseAttention::apply(
        query, key, value, bias, alibi_slopes,
        Settings{pattern, scale, query_offset, dropout, dropout_seed}, &made);
    return {result[0], result[1]};
  } catch (...) {
    // A hook for saved tensors may throw: checkpoint ends a recomputation that way. The node still holds
    // what it was to save then, its own output among it, and the output holds the node.
    if (made.output.defined() && made.output.grad_fn() != nullptr) {
      made.context->save_for_backward({});
    }
    throw;
  }
}

// Autocast: as LibTorch's own attention, in the lower precision.

template <c10::DeviceType device>
Output autocast_kernel(const Tensor& query, const Tensor& key, const Tensor& value,
                       const OptionalTensor& bias, const OptionalTensor& alibi_slopes,
                       const PatternPtr& pattern, double scale, int64_t query_offset,
                       double dropout, int64_t dropout_seed) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(
      at::autocast::get_autocast_dispatch_key_from_device_type(device));
  const auto dtype = at::autocast::get_autocast_dtype(device);
  const auto cast = [&](const Tensor& x) { return at::autocast::cached_cast(dtype, x, device); };
  return forward_op().call(cast(query), cast(key), cast(value), bias, alibi_slopes, pattern, scale,
                           query_offset, dropout, dropout_seed);
}

// Below autograd.

void check_tensors(const Inputs& in) {
  const auto dtype = in.query.scalar_type();
  TORCH_CHECK_TYPE(
      dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf || dtype == at::kDouble,
      "sparse_attention takes float32, bfloat16, float16 or float64, but query is ", dtype);
  TORCH_CHECK_TYPE(in.key.scalar_type() == dtype && in.value.scalar_type() == dtype,
                   "query, key and value must have the same dtype, but are ", dtype, ", ",
                   in.key.scalar_type(), " and ", in.value.scalar_type());
}

Output empty_forward(const Inputs& in) {
  const auto& q = in.query;
  const auto sums = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return {at::zeros({q.size(0), q.size(1), q.size(2), in.value.size(3)}, q.options()),
          at::full({q.size(0), q.size(1), q.size(2)}, -std::numeric_limits<double>::infinity(),
                   q.options().dtype(sums))};
}

GradientTuple empty_backward(const Inputs& in, bool bias_gradient) {
  return {at::zeros_like(in.query), at::zeros_like(in.key), at::zeros_like(in.value),
          bias_gradient ? at::zeros_like(*in.bias) : Tensor()};
}

Output forward_kernel(const Tensor& query, const Tensor& key, const Tensor& value,
                      const OptionalTensor& bias, const OptionalTensor& alibi_slopes,
                      const PatternPtr& pattern, double scale, int64_t query_offset, double dropout,
                      int64_t dropout_seed) {
  const Inputs inputs{query, key, value, bias, alibi_slopes};
  const Settings settings{pattern, scale, query_offset, dropout, dropout_seed};
  check_tensors(inputs);
  if (is_empty(inputs)) return empty_forward(inputs);
  if (runs_on_cpu_kernels(inputs)) return planned_forward(inputs, settings);
  const auto tiles = tiles_of_call(inputs, settings);
  const auto [output, log_sum_exp] = runs_on_flash(inputs, settings)
                                         ? flash_forward(inputs, settings, tiles)
                                         : generic_forward(inputs, settings, tiles);
  auto ordered = empty_as(query, output.size(3));
  return {ordered.copy_(output), log_sum_exp};
}

GradientTuple backward_kernel(const Tensor& grad_output, const OptionalTensor& grad_log_sum_exp,
                              const Tensor& output, const Tensor& log_sum_exp, const Tensor& query,
                              const Tensor& key, const Tensor& value, const OptionalTensor& bias,
                              const OptionalTensor& alibi_slopes, const PatternPtr& pattern,
                              double scale, int64_t query_offset, double dropout,
                              int64_t dropout_seed, bool bias_gradient) {
  const Inputs inputs{query, key, value, bias, alibi_slopes};
  const Settings settings{pattern, scale, query_offset, dropout, dropout_seed};
  if (is_empty(inputs)) return empty_backward(inputs, bias_gradient);
  const auto grad_sums = grad_log_sum_exp.value_or(Tensor());
  const auto tuple = [](const Gradients& g) {
    return GradientTuple(g.query, g.key, g.value, g.bias);
  };
  if (runs_on_cpu_kernels(inputs) && !bias_gradient) {
    return tuple(planned_backward(grad_output, grad_sums, output, log_sum_exp, inputs, settings));
  }
  const auto tiles = tiles_of_call(inputs, settings);
  if (runs_on_flash(inputs, settings) && !grad_sums.defined()) {
    return tuple(flash_backward(grad_output, output, log_sum_exp, inputs, settings, tiles));
  }
  return tuple(generic_backward(grad_output, grad_sums, output, log_sum_exp, inputs, settings,
                                tiles, bias_gradient));
}

template <c10::DeviceType device>
void add_autocast() {
  static torch::Library library(torch::Library::IMPL, "torchlore",
                                at::autocast::get_autocast_dispatch_key_from_device_type(device),
                                __FILE__, __LINE__);
  library.impl("sparse_attention", &autocast_kernel<device>);
}

void register_ops() {
  static const bool once = [] {
    static const torch::class_<Pattern> pattern("torchlore", "AttentionPattern");
    static torch::Library ops(torch::Library::FRAGMENT, "torchlore", std::nullopt, __FILE__,
                              __LINE__);
    ops.def(kForwardSchema);
    ops.def(kBackwardSchema);
    static torch::Library kernels(torch::Library::IMPL, "torchlore",
                                  c10::DispatchKey::CompositeExplicitAutograd, __FILE__, __LINE__);
    kernels.impl("sparse_attention", &forward_kernel);
    kernels.impl("sparse_attention_backward", &backward_kernel);
    static torch::Library autograd(torch::Library::IMPL, "torchlore", c10::DispatchKey::Autograd,
                                   __FILE__, __LINE__);
    autograd.impl("sparse_attention", &autograd_kernel);
    add_autocast<c10::DeviceType::CPU>();
    add_autocast<c10::DeviceType::CUDA>();
    add_autocast<c10::DeviceType::XPU>();
    add_autocast<c10::DeviceType::MPS>();
    return true;
  }();
  static_cast<void>(once);
}

}  // namespace

TileLayouts tiles_of_call(const Inputs& in, const Settings& settings) {
  TileLayouts tiles;
  for (int64_t b = 0; b < in.query.size(0); ++b) {
    for (int64_t h = 0; h < in.query.size(1); ++h) {
      tiles.push_back(&settings.layout().pattern(b, h));
    }
  }
  return tiles;
}

std::tuple<Tensor, Tensor> call_op(const Inputs& in, const Settings& s) {
  return forward_op().call(in.query, in.key, in.value, in.bias, in.alibi_slopes, s.pattern, s.scale,
                           s.query_offset, s.dropout, s.dropout_seed);
}

}  // namespace torchlore::attention
