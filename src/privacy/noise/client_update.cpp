#include "client_update.hpp"

#include <cmath>
#include <sstream>

#include "../../core/kernels/element_of.hpp"
#include "noise_kernels.hpp"
#include "torchlore/core/error.hpp"

namespace torchlore::privacy {

int64_t check_model(const StateDict& like) {
  int64_t elements = 0;
  for (const auto& [name, tensor] : like) {
    TORCH_CHECK_TYPE(tensor.is_floating_point(), "clients send updates of floating tensors, but \"",
                     name, "\" is ", tensor.scalar_type());
    elements += tensor.numel();
  }
  TORCH_CHECK_VALUE(elements > 0, "aggregation needs a model with at least one element");
  return elements;
}

std::string difference(const StateDict& like, const StateDict& update) {
  std::ostringstream text;
  for (const auto& [name, tensor] : update) {
    if (!like.contains(name)) {
      text << '"' << name << "\" is not a tensor of the model";
      return text.str();
    }
  }
  for (const auto& [name, expected] : like) {
    const auto found = update.find(name);
    if (found == update.end() || !found->second.defined()) {
      text << '"' << name << "\" is missing";
    } else if (found->second.sizes() != expected.sizes()) {
      text << '"' << name << "\" has the shape " << found->second.sizes() << " instead of "
           << expected.sizes();
    } else if (!found->second.is_floating_point()) {
      text << '"' << name << "\" is " << found->second.scalar_type() << ", not floating";
    } else {
      continue;
    }
    return text.str();
  }
  return {};
}

StateDict on_host(const StateDict& update) {
  StateDict host;
  for (const auto& [name, tensor] : update) {
    const auto dtype = tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    host[name] = tensor.detach().to(at::kCPU, dtype).contiguous();
  }
  return host;
}

double norm_of(const StateDict& update) {
  const auto& kernels = kernels::gradient_kernels();
  double squares = 0;
  for (const auto& [name, tensor] : update) {
    squares += kernels.sum_squares(tensor.const_data_ptr(), tensor.numel(),
                                   kernels::element_of(tensor.scalar_type()));
  }
  return std::sqrt(squares);
}

void accumulate(const at::Tensor& sum, const at::Tensor& values, double factor) {
  const auto& kernels = kernels::noise_kernels();
  auto* into = sum.mutable_data_ptr<int64_t>();
  if (values.scalar_type() == at::kDouble) {
    kernels.accumulate_f64(into, values.const_data_ptr<double>(), values.numel(), factor);
  } else {
    kernels.accumulate_f32(into, values.const_data_ptr<float>(), values.numel(), factor);
  }
}

double clip_factor(double norm, double clip_norm) {
  const double limit = clip_norm * (1 - kClipSlack);
  return norm > limit ? limit / norm : 1;
}

}  // namespace torchlore::privacy
