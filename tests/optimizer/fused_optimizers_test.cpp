// The contract that the four fused optimizers share, and where they differ.

#include "optimizer/fused_support.hpp"
#include "torchlore/optimizer/fused_adagrad.hpp"
#include "torchlore/optimizer/fused_adam.hpp"
#include "torchlore/optimizer/fused_adamw.hpp"
#include "torchlore/optimizer/fused_sgd.hpp"

namespace torchlore {
namespace {

using testing::copies;
using testing::largest_difference;
using testing::message_of;
using testing::odd_shapes;
using testing::OptionMap;
using testing::same;
using testing::set_gradients;
using testing::Tensors;
using testing::Twin;

double option(const OptionMap& map, const char* key, double otherwise) {
  const auto found = map.find(key);
  return found == map.end() ? otherwise : found->second;
}

template <typename Options>
Options adam_options(const OptionMap& map, double weight_decay) {
  return Options(map.at("lr"))
      .betas({option(map, "beta1", 0.9), option(map, "beta2", 0.999)})
      .eps(option(map, "eps", 1e-8))
      .weight_decay(option(map, "weight_decay", weight_decay))
      .amsgrad(option(map, "amsgrad", 0) != 0);
}

struct AdamW {
  using Namesake = torch::optim::AdamW;
  using Fused = FusedAdamW;
  using Options = torch::optim::AdamWOptions;
  static constexpr const char* name = "AdamW";
  static Options from(const OptionMap& map) { return adam_options<Options>(map, 0.01); }
  static std::vector<OptionMap> variants() {
    return {{{"lr", 0.01}, {"weight_decay", 0.05}},
            {{"lr", 0.01}, {"beta1", 0.8}, {"beta2", 0.9}, {"eps", 1e-3}, {"amsgrad", 1}}};
  }
};

struct Adam {
  using Namesake = torch::optim::Adam;
  using Fused = FusedAdam;
  using Options = torch::optim::AdamOptions;
  static constexpr const char* name = "Adam";
  static Options from(const OptionMap& map) { return adam_options<Options>(map, 0.0); }
  static std::vector<OptionMap> variants() { return AdamW::variants(); }
};

struct SGD {
  using Namesake = torch::optim::SGD;
  using Fused = FusedSGD;
  using Options = torch::optim::SGDOptions;
  static constexpr const char* name = "SGD";
  static Options from(const OptionMap& map) {
    return Options(map.at("lr"))
        .momentum(option(map, "momentum", 0))
        .dampening(option(map, "dampening", 0))
        .weight_decay(option(map, "weight_decay", 0))
        .nesterov(option(map, "nesterov", 0) != 0);
  }
  static std::vector<OptionMap> variants() {
    return {{{"lr", 0.01}, {"momentum", 0.9}, {"dampening", 0.2}, {"weight_decay", 0.05}},
            {{"lr", 0.01}, {"momentum", 0.9}, {"nesterov", 1}},
            {{"lr", 0.01}}};
  }
};

struct Adagrad {
  using Namesake = torch::optim::Adagrad;
  using Fused = FusedAdagrad;
  using Options = torch::optim::AdagradOptions;
  static constexpr const char* name = "Adagrad";
  static Options from(const OptionMap& map) {
    return Options(map.at("lr"))
        .lr_decay(option(map, "lr_decay", 0))
        .weight_decay(option(map, "weight_decay", 0))
        .initial_accumulator_value(option(map, "initial_accumulator_value", 0))
        .eps(option(map, "eps", 1e-10));
  }
  static std::vector<OptionMap> variants() {
    return {{{"lr", 0.05}, {"lr_decay", 0.1}, {"weight_decay", 0.05}, {"eps", 1e-3}},
            {{"lr", 0.05}, {"initial_accumulator_value", 0.3}}};
  }
};

template <typename Traits>
class FusedOptimizer : public ::testing::Test {
 protected:
  static typename Traits::Options usual() { return Traits::from(Traits::variants()[0]); }
};
using All = ::testing::Types<AdamW, Adam, SGD, Adagrad>;
TYPED_TEST_SUITE(FusedOptimizer, All);

// ---- the contract of all four
// --------------------------------------------------------------------

template <typename Traits>
void follow(const testing::Trajectory& golden) {
  Tensors params;
  const std::vector<int64_t> sizes{5, 3, 4};
  for (size_t k = 0; k < 3; ++k) {
    const auto i = at::arange(sizes[k], at::kDouble);
    params.push_back((i * 1.1 + 0.5 * static_cast<double>(k)).cos().requires_grad_());
  }
  using Options = typename Traits::Options;
  std::vector<torch::optim::OptimizerParamGroup> groups;
  groups.emplace_back(Tensors{params[0], params[1]},
                      std::make_unique<Options>(Traits::from(golden.first)));
  groups.emplace_back(Tensors{params[2]}, std::make_unique<Options>(Traits::from(golden.second)));
  typename Traits::Fused optimizer(groups, Traits::from(golden.first));
  // C++ fills what equals a constructor's default from the first group: say again what is meant.
  static_cast<Options&>(optimizer.param_groups()[1].options()) = Traits::from(golden.second);

  for (int step = 1; step <= 30; ++step) {
    for (size_t k = 0; k < 3; ++k) {
      const auto phase = at::arange(sizes[k], at::kDouble) * 0.7 + 1.3 * step;
      const auto grad = (phase + static_cast<double>(k)).sin() * (1 + 0.1 * step);
      params[k].mutable_grad() = k == 1 && step % 3 == 0 ? at::Tensor() : grad;
    }
    optimizer.step();
    if (step == 10) {
      for (auto& group : optimizer.param_groups()) {
        group.options().set_lr(group.options().get_lr() * 0.3);
      }
    }
    const auto expected = golden.values.find(step);
    if (expected == golden.values.end()) continue;
    const auto actual = at::cat({params[0], params[1], params[2]}).detach();
    EXPECT_TRUE(testing::close(actual, at::tensor(expected->second, at::kDouble)))
        << Traits::name << " step " << step;
  }
}

TYPED_TEST(FusedOptimizer, FollowsThePythonOptimizer) {
  const auto all = testing::read_trajectories(TypeParam::name);
  ASSERT_GE(all.size(), 2u);
  for (const auto& golden : all) follow<TypeParam>(golden);
}

TYPED_TEST(FusedOptimizer, EqualsItsNamesakeOverManySteps) {
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    for (const auto& variant : TypeParam::variants()) {
      Twin<TypeParam> twin(odd_shapes(dtype), TypeParam::from(variant));
      twin.steps(60);
      EXPECT_TRUE(twin.equal()) << dtype;
    }
  }
}

TYPED_TEST(FusedOptimizer, StepsHalfPrecisionParametersLikeDoubleOnes) {
  auto map = TypeParam::variants()[0];
  map["eps"] = 1e-3;  // the usual 1e-8 is 0 in float16
  for (const auto dtype : {at::kBFloat16, at::kHalf}) {
    auto half = odd_shapes(dtype);
    Tensors exact;
    for (const auto& p : half) exact.push_back(p.detach().to(at::kDouble).requires_grad_());
    typename TypeParam::Fused optimizer(half, TypeParam::from(map));
    typename TypeParam::Namesake reference(exact, TypeParam::from(map));
    for (int i = 0; i < 4; ++i) {
      set_gradients(half, exact);
      for (size_t k = 0; k < half.size(); ++k) {
        exact[k].mutable_grad() = exact[k].grad().to(at::kDouble);
      }
      optimizer.step();
      reference.step();
    }
    for (size_t k = 0; k < half.size(); ++k) {
      EXPECT_TRUE(at::allclose(half[k].detach().to(at::kDouble), exact[k].detach(), 0.02, 0.02))
          << dtype << " parameter " << k;
    }
  }
}

TYPED_TEST(FusedOptimizer, SharesManySmallTensorsAmongThreads) {
  Tensors params;
  for (int64_t i = 0; i < 300; ++i) params.push_back(at::randn({900 + i}).requires_grad_());
  params.push_back(at::randn({70'001}).requires_grad_());  // large: a call of its own
  Twin<TypeParam> twin(std::move(params), this->usual());
  twin.steps(5);
  EXPECT_TRUE(twin.equal());
}

TYPED_TEST(FusedOptimizer, MixesDtypesAndStepCounts) {
  auto params = odd_shapes(at::kFloat);
  for (const auto& p : odd_shapes(at::kDouble)) params.push_back(p);
  Twin<TypeParam> twin(std::move(params), this->usual());
  for (int i = 0; i < 10; ++i) {
    set_gradients(twin.plain_params, twin.fused_params);
    for (size_t k = 0; k < twin.plain_params.size(); ++k) {
      if ((static_cast<size_t>(i) + k) % 3 != 0) continue;
      twin.plain_params[k].mutable_grad().reset();
      twin.fused_params[k].mutable_grad().reset();
    }
    twin.plain.step();
    twin.fused.step();
  }
  EXPECT_TRUE(twin.equal());
}

TYPED_TEST(FusedOptimizer, LoadsWhatItsNamesakeSavedAndTheOtherWayRound) {
  Twin<TypeParam> twin(odd_shapes(at::kDouble), this->usual());
  twin.steps(7);
  typename TypeParam::Namesake plain(twin.fused_params, TypeParam::from({{"lr", 1.0}}));
  typename TypeParam::Fused fused(twin.plain_params, TypeParam::from({{"lr", 1.0}}));
  testing::exchange(twin.fused, plain);
  testing::exchange(twin.plain, fused);
  for (int i = 0; i < 7; ++i) {
    set_gradients(twin.plain_params, twin.fused_params);
    plain.step();
    fused.step();
  }
  EXPECT_TRUE(twin.equal());

  Twin<TypeParam> other(odd_shapes(at::kDouble), TypeParam::from({{"lr", 1.0}}));
  testing::exchange(fused, other.fused);
  testing::exchange(fused, other.plain);
  other.steps(3);
  EXPECT_TRUE(other.equal());
}

TYPED_TEST(FusedOptimizer, SteppingWithADivisorEqualsDividingByHandFirst) {
  for (const auto dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
    auto by_hand = odd_shapes(dtype);
    auto in_kernel = copies(by_hand);
    typename TypeParam::Fused first(by_hand, this->usual());
    typename TypeParam::Fused second(in_kernel, this->usual());
    const auto divisor = at::scalar_tensor(3.7, at::kFloat);
    for (int i = 0; i < 5; ++i) {
      set_gradients(by_hand, in_kernel);
      divide_gradients_(gradients(by_hand), divisor);
      first.step();
      second.step_scaled(divisor);
      for (size_t k = 0; k < by_hand.size(); ++k) {
        EXPECT_TRUE(same(in_kernel[k].detach(), by_hand[k].detach())) << dtype << " " << k;
        EXPECT_TRUE(same(in_kernel[k].grad(), by_hand[k].grad())) << dtype << " " << k;
      }
    }
  }
}

TYPED_TEST(FusedOptimizer, TakesParametersThatTheKernelCannot) {
  const auto make = [] {
    at::manual_seed(3);
    Tensors params{at::randn({6, 8}).slice(1, 0, 8, 2),  // gaps in memory
                   at::randn({4, 3}), at::randn({9})};
    for (auto& p : params) p.requires_grad_();
    return params;
  };
  auto plain_params = make(), fused_params = make();
  typename TypeParam::Namesake plain(plain_params, this->usual());
  typename TypeParam::Fused fused(fused_params, this->usual());
  for (int i = 0; i < 20; ++i) {
    set_gradients(plain_params, fused_params);
    for (auto* params : {&plain_params, &fused_params}) {
      auto& grad = (*params)[1].mutable_grad();
      grad = grad.t().contiguous().t();  // other strides than its parameter
    }
    plain.step();
    if (i % 2 == 0) {
      fused.step();
    } else {
      fused.step_scaled(at::scalar_tensor(1.0));
    }
  }
  EXPECT_LE(largest_difference(plain_params, fused_params), 1e-6);
}

TYPED_TEST(FusedOptimizer, FollowsAParameterThatChangesItsDtype) {
  Twin<TypeParam> twin({at::randn({20}).requires_grad_()}, this->usual());
  twin.steps(3);
  for (auto* params : {&twin.plain_params, &twin.fused_params}) {
    auto& p = (*params)[0];
    p.mutable_grad().reset();
    p.set_data(p.detach().to(at::kDouble));
  }
  twin.steps(3);
  EXPECT_LE(largest_difference(twin.plain_params, twin.fused_params), 1e-6);
}

TYPED_TEST(FusedOptimizer, StepsAParameterListedTwiceTwice) {
  const auto p = at::randn({40}), q = p.clone();
  p.requires_grad_();
  q.requires_grad_();
  typename TypeParam::Namesake plain(Tensors{p, p}, this->usual());
  typename TypeParam::Fused fused(Tensors{q, q}, this->usual());
  for (int i = 0; i < 10; ++i) {
    p.mutable_grad() = at::randn({40});
    q.mutable_grad() = p.grad() * 8;
    plain.step();
    fused.step_scaled(at::scalar_tensor(8.0));
  }
  EXPECT_LE(largest_difference({p}, {q}), 1e-6);
}

TYPED_TEST(FusedOptimizer, RunsTheClosureWithGradients) {
  const auto p = at::ones({3}).requires_grad_();
  typename TypeParam::Fused optimizer(Tensors{p}, this->usual());
  const auto loss = optimizer.step([&] {
    optimizer.zero_grad();
    const auto value = (p * p).sum();
    value.backward();
    return value;
  });
  EXPECT_EQ(loss.template item<double>(), 3);
  EXPECT_LT(p.detach().max().template item<double>(), 1);
  EXPECT_FALSE(optimizer.step().defined());
}

TYPED_TEST(FusedOptimizer, RefusesBadOptionsInTheWordsOfItsNamesake) {
  const auto bad = TypeParam::from({{"lr", -1.0}});
  const auto make = [&]<typename T>(T*) { T optimizer(Tensors{at::ones({1})}, bad); };
  EXPECT_EQ(message_of([&] { make(static_cast<typename TypeParam::Fused*>(nullptr)); }),
            message_of([&] { make(static_cast<typename TypeParam::Namesake*>(nullptr)); }));
}

TYPED_TEST(FusedOptimizer, RefusesComplexParametersBeforeAnyChange) {
  const auto real = at::ones({2}).requires_grad_();
  const auto complex = at::ones({2}, at::kComplexFloat).requires_grad_();
  typename TypeParam::Fused optimizer(Tensors{real, complex}, this->usual());
  real.mutable_grad() = at::ones({2});
  complex.mutable_grad() = at::ones({2}, at::kComplexFloat);
  EXPECT_EQ(message_of<c10::TypeError>([&] { optimizer.step(); }),
            std::string("Fused") + TypeParam::name +
                " got a parameter of dtype ComplexFloat; parameters must be float16, bfloat16, "
                "float32 or float64");
  EXPECT_TRUE(same(real.detach(), at::ones({2})));
}

TYPED_TEST(FusedOptimizer, RefusesABadDivisorBeforeAnyChange) {
  const auto p = at::ones({2}).requires_grad_();
  typename TypeParam::Fused optimizer(Tensors{p}, this->usual());
  p.mutable_grad() = at::ones({2});
  EXPECT_EQ(message_of<c10::ValueError>([&] { optimizer.step_scaled(at::ones({2})); }),
            "a divisor must be one number, but has shape [2]");
  EXPECT_EQ(message_of<c10::TypeError>([&] { optimizer.step_scaled(at::ones({}, at::kInt)); }),
            "a divisor must be a floating tensor, but has dtype Int");
  EXPECT_TRUE(same(p.detach(), at::ones({2})));
}

TYPED_TEST(FusedOptimizer, DoesNothingWithoutGradients) {
  const auto p = at::ones({2}).requires_grad_();
  typename TypeParam::Fused optimizer(Tensors{p}, this->usual());
  optimizer.step();
  optimizer.step_scaled(at::scalar_tensor(2.0));
  EXPECT_TRUE(same(p.detach(), at::ones({2})));
}

// ---- where they differ
// ---------------------------------------------------------------------------

at::Tensor sparse_gradient() {
  const auto indices = at::tensor({1, 4, 1}, at::kLong).reshape({1, 3});
  return at::sparse_coo_tensor(indices, at::randn({3, 2}), {6, 2});
}

template <typename Traits>
void expect_sparse_steps_as_namesake(const typename Traits::Options& options) {
  const auto table = at::randn({6, 2}), weight = at::randn({5});
  Twin<Traits> twin({table.clone().requires_grad_(), weight.clone().requires_grad_()}, options);
  for (int i = 0; i < 6; ++i) {
    set_gradients(twin.plain_params, twin.fused_params);
    const auto grad = sparse_gradient();
    twin.plain_params[0].mutable_grad() = grad;
    twin.fused_params[0].mutable_grad() = grad * 4;
    twin.fused_params[1].mutable_grad().mul_(4);
    twin.plain.step();
    twin.fused.step_scaled(at::scalar_tensor(4.0));
  }
  EXPECT_TRUE(twin.equal());
}

TEST(FusedSGD, TakesSparseGradients) {
  expect_sparse_steps_as_namesake<SGD>(torch::optim::SGDOptions(0.1));
}

TEST(FusedAdagrad, TakesSparseGradients) {
  expect_sparse_steps_as_namesake<Adagrad>(torch::optim::AdagradOptions(0.1).lr_decay(0.1));
}

template <typename Traits>
void expect_sparse_refused() {
  const auto dense = at::ones({2}).requires_grad_(), table = at::ones({6, 2}).requires_grad_();
  typename Traits::Fused optimizer(Tensors{dense, table}, Traits::from(Traits::variants()[0]));
  dense.mutable_grad() = at::ones({2});
  table.mutable_grad() = sparse_gradient();
  EXPECT_EQ(
      message_of<c10::NotImplementedError>([&] { optimizer.step(); }),
      std::string("Fused") + Traits::name +
          " does not support sparse gradients; give the parameters that have them to FusedSGD "
          "or FusedAdagrad");
  EXPECT_TRUE(same(dense.detach(), at::ones({2})));
}

TEST(FusedAdamW, RefusesSparseGradientsBeforeAnyChange) { expect_sparse_refused<AdamW>(); }

TEST(FusedAdam, RefusesSparseGradientsBeforeAnyChange) { expect_sparse_refused<Adam>(); }

TEST(FusedAdamW, StartsTheMaximumWhenAmsgradIsTurnedOnLater) {
  const auto p = at::ones({20}).requires_grad_();
  FusedAdamW optimizer(Tensors{p}, torch::optim::AdamWOptions(0.1));
  p.mutable_grad() = at::ones({20});
  optimizer.step();
  static_cast<torch::optim::AdamWOptions&>(optimizer.param_groups()[0].options()).amsgrad(true);
  optimizer.step();
  EXPECT_TRUE(at::isfinite(p.detach()).all().item<bool>());
}

TEST(FusedAdagrad, RefusesParametersAddedLaterInTheWordsOfItsNamesake) {
  const auto text = []<typename T>(T*) {
    T optimizer(Tensors{at::ones({1}).requires_grad_()});
    const auto late = at::ones({2}).requires_grad_();
    late.mutable_grad() = at::ones({2});
    optimizer.add_param_group({Tensors{late}});
    return message_of([&] { optimizer.step(); });
  };
  EXPECT_EQ(text(static_cast<FusedAdagrad*>(nullptr)),
            text(static_cast<torch::optim::Adagrad*>(nullptr)));
}

}  // namespace
}  // namespace torchlore
