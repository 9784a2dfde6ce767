#pragma once

#include <torch/nn/modules/adaptive.h>
#include <torch/nn/modules/loss.h>

#include "intercept/coverage/module_case.hpp"

/// The losses of torch::nn.
namespace torchlore::testing {

inline at::Tensor classes(std::vector<int64_t> values) { return at::tensor(values); }

inline std::vector<ModuleCase> pointwise_losses() {
  using namespace torch::nn;
  const auto x = input({4, 3}), y = at::randn({4, 3});
  const auto probabilities = at::sigmoid(at::randn({4, 3})).requires_grad_();
  const auto share = at::full({4, 3}, 0.3), sign = at::randn({4, 3}).sign();
  return {
      plain_case<BCELoss>("BCELoss", probabilities, share),
      plain_case<BCEWithLogitsLoss>("BCEWithLogitsLoss", x, share),
      plain_case<HingeEmbeddingLoss>("HingeEmbeddingLoss", x, sign),
      plain_case<HuberLoss>("HuberLoss", x, y),
      plain_case<KLDivLoss>("KLDivLoss", x, share),
      plain_case<L1Loss>("L1Loss", x, y),
      plain_case<MSELoss>("MSELoss", x, y),
      plain_case<MultiLabelSoftMarginLoss>("MultiLabelSoftMarginLoss", x, share),
      plain_case<PoissonNLLLoss>("PoissonNLLLoss", x, share),
      plain_case<SmoothL1Loss>("SmoothL1Loss", x, y),
      plain_case<SoftMarginLoss>("SoftMarginLoss", x, sign),
  };
}

inline std::vector<ModuleCase> other_losses() {
  using namespace torch::nn;
  const auto x = input({4, 3}), y = input({4, 3}), z = input({4, 3});
  const auto labels = classes({0, 2, 1, 1}), sign = at::tensor({1.F, -1.F, 1.F, -1.F});
  const auto asm_options = AdaptiveLogSoftmaxWithLossOptions(8, 6, {2, 4}).div_value(2.0);
  return {
      module_case(
          "AdaptiveLogSoftmaxWithLoss", [=] { return AdaptiveLogSoftmaxWithLoss(asm_options); },
          input({4, 8}), classes({0, 3, 5, 1})),
      plain_case<CosineEmbeddingLoss>("CosineEmbeddingLoss", x, y, sign),
      plain_case<CrossEntropyLoss>("CrossEntropyLoss", x, labels),
      plain_case<CTCLoss>("CTCLoss", at::log_softmax(at::randn({6, 2, 4}), 2).requires_grad_(),
                          classes({1, 2, 3, 1}).view({2, 2}), classes({6, 6}), classes({2, 2})),
      plain_case<MarginRankingLoss>("MarginRankingLoss", input({4}), input({4}), sign),
      plain_case<MultiLabelMarginLoss>(
          "MultiLabelMarginLoss", x,
          classes({0, 2, -1, 1, -1, 0, 2, 1, -1, 0, -1, -1}).view({4, 3})),
      plain_case<MultiMarginLoss>("MultiMarginLoss", x, labels),
      plain_case<NLLLoss>("NLLLoss", x, labels),
      plain_case<TripletMarginLoss>("TripletMarginLoss", x, y, z),
      plain_case<TripletMarginWithDistanceLoss>("TripletMarginWithDistanceLoss", x, y, z),
  };
}

}  // namespace torchlore::testing
