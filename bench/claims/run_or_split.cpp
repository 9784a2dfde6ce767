// A batch in parts: the gradient of the whole, and the largest part that fits.
#include "torchlore/memory/run_or_split.hpp"

#include <ATen/Functions.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>

#include <sstream>

#include "claim.hpp"
#include "claim_paths.hpp"
#include "harness/child.hpp"

namespace torchlore::claims {
namespace {

namespace nn = torch::nn;

constexpr int64_t kBatch = 96;

nn::Sequential make_net(at::ScalarType dtype) {
  nn::Sequential net(nn::Linear(64, 128), nn::GELU(), nn::Linear(128, 128), nn::GELU(),
                     nn::Linear(128, 32));
  net->to(dtype);
  return net;
}

/// The sum over tokens, with a mask that gives each example another number of them.
Loss masked(nn::Sequential& net, const at::Tensor& x, const at::Tensor& mask) {
  return {(net->forward(x).square().mean(1) * mask).sum(), mask.sum()};
}

std::vector<at::Tensor> take_gradients(nn::Sequential& net) {
  std::vector<at::Tensor> all;
  for (const auto& p : net->parameters()) {
    all.push_back(p.grad());
    p.mutable_grad() = at::Tensor();
  }
  return all;
}

/// The largest error of a gradient, over its largest element: split by each of all sizes.
double worst_error(at::ScalarType dtype, int64_t sizes) {
  at::manual_seed(1);
  auto net = make_net(dtype);
  const auto x = at::randn({kBatch, 64}, dtype);
  const auto mask = at::randint(0, 50, {kBatch}).to(dtype);
  const auto whole = masked(net, x, mask);
  (whole.sum / whole.count.tensor().to(dtype)).backward();
  const auto expected = take_gradients(net);
  double worst = 0;
  for (int64_t largest = 1; largest < kBatch; largest += std::max<int64_t>(1, kBatch / sizes)) {
    run_or_split(std::tuple(x, mask), [&](const auto& part) {
      const auto& [px, pmask] = part;
      if (px.size(0) > largest) C10_THROW_ERROR(OutOfMemoryError, "injected");
      return masked(net, px, pmask);
    });
    const auto actual = take_gradients(net);
    for (size_t i = 0; i < actual.size(); ++i) {
      const auto error = (actual[i] - expected[i]).abs().max() / expected[i].abs().max();
      worst = std::max(worst, error.item<double>());
    }
  }
  return worst;
}

void report_error(Context& context, const char* part, const std::string& setting, double error,
                  double bar, const std::string& note) {
  context.report({.part = part,
                  .setting = setting,
                  .baseline = "backward of the whole batch",
                  .measured = {error, error, error},
                  .unit = "relative error",
                  .bar = bar,
                  .note = note});
}

/// Room for activations beyond what the process has. Other limits were tried before these: under
/// the first ones oneDNN's own code could not be mapped.
constexpr int64_t kMegabytes[] = {16, 24, 32};

void under_limit(Context& context) {
  for (const auto full : kMegabytes) {
    const auto megabytes = context.quick() ? full / 2 : full;
    Child worker({TORCHLORE_RECOVERY_WORKER, "limit", std::to_string(context.threads()),
                  context.quick() ? "1" : "0", std::to_string(megabytes)});
    std::istringstream answer(worker.read_line().value_or(""));
    int64_t found = 0, largest = 0, parts = 0;
    double error = 0;
    answer >> found >> largest >> parts >> error;
    TORCH_CHECK(answer && worker.wait().exit_code == 0,
                "the worker of run_or_split failed; its errors are above");
    const auto setting = fmt::format(
        "6 x (linear 256, tanh), float32, batch {}, in a process with RLIMIT_DATA at {} MiB above "
        "its use, malloc mapping each tensor on its own; {} batches, search_every 2",
        context.quick() ? 2048 : 4096, megabytes, context.quick() ? 16 : 30);
    const auto ratio =
        static_cast<double>(largest) / static_cast<double>(std::max<int64_t>(found, 1));
    context.report(
        {.part = fmt::format("size_{}", megabytes),
         .setting = setting,
         .baseline =
             "the largest size of which two parts fit in a row, by bisection in the same process",
         .measured = {ratio, ratio, ratio},
         .unit = "x",
         .bar = 1 / 0.9,
         .note = fmt::format("found {}, largest {}; the batch ran in {} parts", found, largest,
                             parts)});
    report_error(context, fmt::format("limit_{}", megabytes).c_str(), setting, error, 1e-6,
                 "largest over all batches and parameters");
  }
}

void measure(Context& context) {
  const int64_t sizes = context.quick() ? 4 : kBatch;
  const auto setting = [](const char* dtype) {
    return fmt::format(
        "64-128-128-32, {}, batch {}, a masked sum with its count; memory runs out "
        "(injected) above each part size in turn",
        dtype, kBatch);
  };
  const char* note = "largest over all sizes and parameters, over the gradient's largest element";
  report_error(context, "float32", setting("float32"), worst_error(at::kFloat, sizes), 1e-6, note);
  report_error(context, "float64", setting("float64"), worst_error(at::kDouble, sizes), 1e-12,
               note);
  under_limit(context);
}

const bool registered =
    add_claim({.name = "run_or_split",
               .group = "memory",
               .promise = "a batch in parts has the gradient of the whole, and parts are nearly as "
                          "large as fits",
               .measure = measure,
               .minutes = 4});

}  // namespace
}  // namespace torchlore::claims
