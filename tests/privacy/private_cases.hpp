#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <torch/nn/modules/container/sequential.h>

#include "privacy/example_loop.hpp"

/// Models whose examples' gradients are compared with a loop's.
namespace torchlore::testing {

namespace nn = torch::nn;

/// A model and a forward that gives [B, …], the examples in dimension `dim` of the inputs; the loss of an
/// example differs in every element.
struct Case {
  std::string name;
  std::function<std::shared_ptr<nn::Module>()> make;
  at::Tensor input;
  int64_t dim = 0;
  int64_t output_dim = 0;
  std::function<at::Tensor(nn::Module&, const at::Tensor&)> call;
};

inline at::Tensor losses_of(const at::Tensor& output, int64_t dim) {
  const auto rows = output.movedim(dim, 0);
  const auto weights = at::linspace(0.5, 1.5, rows[0].numel(), output.options());
  return (rows.reshape({rows.size(0), -1}).sin() * weights).sum(1);
}

inline PrivateCase built(const Case& c, at::ScalarType dtype) {
  at::manual_seed(3);
  auto model = c.make();
  model->to(dtype);
  const auto input = c.input.is_floating_point() ? c.input.to(dtype) : c.input;
  const auto losses = [=](int64_t from, int64_t to) {
    const auto some = input.narrow(c.dim, from, to - from);
    return losses_of(c.call(*model, some), c.output_dim);
  };
  return {c.name, model, input.size(c.dim), losses};
}

/// A module that is called with the input.
template <typename M>
Case layer(std::string name, std::function<M()> make, const at::Tensor& input, int64_t dim = 0) {
  using Impl = typename M::ContainedType;
  return {std::move(name),
          [=] { return make().ptr(); },
          input,
          dim,
          dim,
          [](nn::Module& m, const at::Tensor& x) { return dynamic_cast<Impl&>(m).forward(x); }};
}

/// Modules one after the other.
inline Case chain(std::string name, const at::Tensor& input, int64_t dim, int64_t output_dim,
                  std::function<nn::Sequential()> make) {
  return {std::move(name),
          [=] { return make().ptr(); },
          input,
          dim,
          output_dim,
          [](nn::Module& m, const at::Tensor& x) {
            return dynamic_cast<nn::SequentialImpl&>(m).forward(x);
          }};
}

/// Weights other than 1, so that the norms' gradients are not all alike.
template <typename M>
M jiggled(M module) {
  at::NoGradGuard no_grad;
  for (auto& parameter : module->parameters()) parameter.add_(at::randn_like(parameter), 0.3);
  return module;
}

/// Shown when a case fails.
inline void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }
inline std::string case_name(const ::testing::TestParamInfo<Case>& info) { return info.param.name; }

inline at::Tensor random_input(at::IntArrayRef sizes) {
  static auto generator = at::make_generator<at::CPUGeneratorImpl>(11);
  return at::randn(sizes, generator, at::kDouble);
}

}  // namespace torchlore::testing
