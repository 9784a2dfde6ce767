// Saved activations in bfloat16: what it saves, and what it costs in the gradients and in the end.
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/randint.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <torch/nn/functional/loss.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "../../examples/train_text/gpt.hpp"
#include "claim.hpp"
#include "harness/statistics.hpp"
#include "harness/train_text.hpp"
#include "torchlore/memory/activations.hpp"
#include "torchlore/memory/memory_meter.hpp"

namespace torchlore::claims {
namespace {

using Json = nlohmann::json;

struct Task {
  explicit Task(bool quick)
      : model(text::GPTOptions{.layers = quick ? 1 : 4, .width = quick ? 64 : 256}),
        ids(at::randint(256, {quick ? 2 : 8, 129})) {}

  at::Tensor loss() {
    const auto logits = model->forward(ids.slice(1, 0, 128));
    return torch::nn::functional::cross_entropy(logits.flatten(0, 1), ids.slice(1, 1).flatten());
  }

  /// What the loss holds of the forward pass. [bytes]
  double activation_bytes(const Activations& activations) {
    const MemoryMeter meter;
    const auto loss = forward(activations);
    return static_cast<double>(meter.current().count());
  }

  at::Tensor gradient(const Activations& activations) {
    model->zero_grad();
    forward(activations).backward();
    std::vector<at::Tensor> parts;
    for (const auto& p : model->parameters()) parts.push_back(p.grad().flatten());
    return at::cat(parts);
  }

  at::Tensor forward(const Activations& activations) {
    const auto scope = activations.enter();
    return loss();
  }

  text::GPT model;
  at::Tensor ids;
};

struct Choice {
  const char* name;
  at::ScalarType dtype;
  double memory_bar;    // of float32's activations
  double gradient_bar;  // error relative to the gradient, per cent
};

constexpr Choice kChoices[] = {{"bf16", at::kBFloat16, 0.55, 1},
                               {"fp16", at::kHalf, 0.55, 0.25},
                               {"int8", at::kChar, 0.35, 5}};

void measure_memory_and_error(Context& context) {
  Task task(context.quick());
  const std::string setting =
      fmt::format("GPT of examples/train_text, batch {} of 128 bytes, float32", task.ids.size(0));
  const double plain = task.activation_bytes(Activations::keep());
  const auto gradient = task.gradient(Activations::keep());
  for (const auto& choice : kChoices) {
    const auto compress = Activations::compress(choice.dtype);
    const double bytes = task.activation_bytes(compress);
    context.report({.part = fmt::format("{}_memory", choice.name),
                    .setting = setting,
                    .baseline = "the same forward pass with its activations as they are",
                    .measured = ratio({bytes}, {plain}),
                    .bar = choice.memory_bar,
                    .note = fmt::format("what the loss holds: {:.1f} MiB against {:.1f} MiB",
                                        bytes / 1048576, plain / 1048576)});
    const double error =
        ((task.gradient(compress) - gradient).norm() / gradient.norm()).item<double>();
    context.report({.part = fmt::format("{}_gradient_error", choice.name),
                    .setting = setting + ", untrained weights",
                    .baseline = "the gradient of all parameters from float32 activations",
                    .measured = ratio({100 * error}, {1}),
                    .unit = "%",
                    .bar = choice.gradient_bar,
                    .note = "norm of the difference over the norm of the gradient"});
  }
}

/// The held-out loss after the steps that both sides make.
double final_loss(const Json& report, const char* side) {
  const auto steps = report.at("steps").get<int64_t>();
  for (const auto& point : report.at("sides").at(side).at("curve")) {
    if (point.at("step").get<int64_t>() == steps) return point.at("loss").get<double>();
  }
  TORCH_CHECK(false, "train_text's report has no loss of the ", side, " side at step ", steps);
}

/// The final loss with activations in each of these; fp16 was added after bf16 had missed the bar.
constexpr const char* kTrained[] = {"bf16", "fp16"};

void measure_final_loss(Context& context) {
  const int seeds = context.quick() ? 1 : 3;
  std::map<std::string, std::vector<double>> off;
  std::map<std::string, std::string> notes;
  for (int seed = 1; seed <= seeds; ++seed) {
    double plain = 0;
    for (const std::string dtype : kTrained) {
      std::vector<std::string> options{"--precision", "fp32", "--activations", dtype};
      if (plain != 0) options.insert(options.end(), {"--only", "torchlore"});
      const auto report = run_train_text(context, seed, options);
      if (plain == 0) plain = final_loss(report, "plain");
      const double ours = final_loss(report, "torchlore");
      off[dtype].push_back(100 * std::abs(ours / plain - 1));
      notes[dtype] += fmt::format("seed {}: {:.4f} against {:.4f}; ", seed, ours, plain);
    }
  }
  for (const std::string dtype : kTrained) {
    const auto [least, most] = std::minmax_element(off[dtype].begin(), off[dtype].end());
    context.report(
        {.part = dtype + "_final_loss",
         .setting = fmt::format("examples/train_text --precision fp32 --activations {}, {} seeds",
                                dtype, seeds),
         .baseline = "the plain float32 loop in the same program",
         .measured = {*most, *least, *most},
         .unit = "%",
         .bar = 0.5,
         .note = notes[dtype] + "the figure is the largest difference of the seeds, either way"});
  }
}

void measure(Context& context) {
  measure_memory_and_error(context);
  measure_final_loss(context);
}

const bool registered = add_claim({.name = "compress_activations",
                                   .group = "memory",
                                   .promise = "activations in half the memory, the same final loss",
                                   .measure = measure,
                                   .minutes = 18,
                                   .threads_matter = false});

}  // namespace
}  // namespace torchlore::claims
