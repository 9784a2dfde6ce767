#pragma once

#include <torch/nn/modules/container/functional.h>
#include <torch/nn/modules/container/moduledict.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/container/parameterdict.h>
#include <torch/nn/modules/container/parameterlist.h>
#include <torch/nn/modules/container/sequential.h>

#include "intercept/coverage/function_modules.hpp"
#include "intercept/coverage/layer_modules.hpp"
#include "intercept/coverage/loss_modules.hpp"

/// Every module of torch::nn with an input that suits it: what can be said of all models is tried on
/// these.
namespace torchlore::testing {

/// A family of modules, as docs/coverage.md groups them.
struct ModuleFamily {
  std::string name;
  std::vector<ModuleCase> modules;
};

/// Containers have no forward of their own, but for two; the others are used as a model would.
inline std::vector<ModuleCase> container_modules() {
  using namespace torch::nn;
  const auto x = input({2, 3});
  const auto used = [=](std::string name, auto make, auto use) {
    return ModuleCase{
        std::move(name), [=]() -> BuiltModule {
          auto holder = make();
          const auto leaf = leaf_like(x);
          const auto forward_of = [=](const InputMap& map) mutable {
            return use(holder, map(leaf));
          };
          return {holder.ptr(), [=]() mutable { return use(holder, leaf); }, forward_of};
        }};
  };
  return {
      module_case(
          "Functional", [] { return Functional([](at::Tensor t) { return at::tanh(t); }); }, x),
      module_case(
          "Sequential", [] { return Sequential(Linear(3, 4), Tanh()); }, x),
      used(
          "ModuleList", [] { return ModuleList(Linear(3, 4)); },
          [](ModuleList& m, const at::Tensor& t) { return m[0]->as<Linear>()->forward(t); }),
      used(
          "ModuleDict",
          [] {
            return ModuleDict(std::vector<std::pair<std::string, std::shared_ptr<Module>>>{
                {"layer", Linear(3, 4).ptr()}});
          },
          [](ModuleDict& m, const at::Tensor& t) { return m["layer"]->as<Linear>()->forward(t); }),
      used(
          "ParameterList",
          [] {
            return ParameterList(input({3, 4}));
          },
          [](ParameterList& p, const at::Tensor& t) { return t.mm(p[0]); }),
      used(
          "ParameterDict",
          [] {
            ParameterDict dict;
            dict->insert("scale", input({3}));
            return dict;
          },
          [](ParameterDict& p, const at::Tensor& t) { return t * p["scale"]; }),
  };
}

/// All modules of torch::nn, by family.
inline std::vector<ModuleFamily> module_families() {
  return {{"Linear and embedding layers", linear_modules()},
          {"Convolutions", convolution_modules()},
          {"Norms", norm_modules()},
          {"Recurrent layers", recurrent_modules()},
          {"Attention", transformer_modules()},
          {"Dropout", dropout_modules()},
          {"Activations", activation_modules()},
          {"Pooling", pooling_modules()},
          {"Padding", padding_modules()},
          {"Shapes and distances", shape_modules()},
          {"Losses, element by element", pointwise_losses()},
          {"Losses, others", other_losses()},
          {"Containers", container_modules()}};
}

}  // namespace torchlore::testing
