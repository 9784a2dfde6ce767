#include "torchlore/optimizer/fused_adamw.hpp"

#include "optimizer/fused_support.hpp"

namespace torchlore {
namespace {

using testing::message_of;
using testing::same;
using torch::optim::AdamWOptions;
using Twin = testing::Twin<torch::optim::AdamW, FusedAdamW, AdamWOptions>;

AdamWOptions usual() { return AdamWOptions(1e-2).weight_decay(0.05); }

TEST(FusedAdamW, EqualsItsNamesakeOverManySteps) {
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    for (const bool amsgrad : {false, true}) {
      Twin twin(testing::odd_shapes(dtype), usual().amsgrad(amsgrad));
      for (int i = 0; i < 60; ++i) twin.step();
      EXPECT_TRUE(twin.equal()) << dtype << " amsgrad " << amsgrad;
    }
  }
}

TEST(FusedAdamW, SteppingWithADivisorEqualsDividingByHandFirst) {
  for (const auto dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
    testing::expect_scaled_step_equals_division<FusedAdamW>(dtype, usual());
  }
}

}  // namespace
}  // namespace torchlore
