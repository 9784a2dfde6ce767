// The memory of 16-bit autocast beside that of float32.
#include <ATen/ops/randint.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <torch/nn/functional/loss.h>

#include <optional>
#include <sstream>

#include "../../examples/train_text/gpt.hpp"
#include "claim.hpp"
#include "claim_paths.hpp"
#include "harness/child.hpp"
#include "torchlore/memory/memory_meter.hpp"
#include "torchlore/precision/autocast.hpp"

namespace torchlore::claims {
namespace {

constexpr int64_t kContext = 128;
constexpr int64_t kVocabulary = 256;

/// The most that forward and backward take above parameters and gradients.
double activations(int64_t batch, std::optional<at::ScalarType> dtype) {
  at::manual_seed(1);
  text::GPT model(text::GPTOptions{.vocabulary = kVocabulary, .context = kContext});
  const auto ids = at::randint(kVocabulary, {batch, kContext + 1});
  for (const auto& p : model->parameters()) p.mutable_grad() = at::zeros_like(p);
  const MemoryMeter meter;
  at::Tensor loss;
  {
    const Autocast amp(at::kCPU, dtype.value_or(at::kBFloat16), {.enabled = dtype.has_value()});
    const auto logits = model->forward(ids.slice(1, 0, kContext));
    loss = torch::nn::functional::cross_entropy(logits.flatten(0, 1), ids.slice(1, 1).flatten());
  }
  loss.backward();
  return static_cast<double>(meter.peak().count());
}

double process(const Context& context, const char* dtype) {
  Child worker({TORCHLORE_RECOVERY_WORKER, "autocast", std::to_string(context.threads()),
                context.quick() ? "1" : "0", dtype});
  std::istringstream answer(worker.read_line().value_or(""));
  double bytes = 0;
  answer >> bytes;
  TORCH_CHECK(answer && worker.wait().exit_code == 0,
              "the worker of autocast_memory failed; its errors are above");
  return bytes;
}

void measure(Context& context) {
  const int64_t batch = context.quick() ? 1 : 8;
  const auto setting = [&](const char* dtype) {
    return fmt::format(
        "GPT of examples/train_text (4 layers, width 256, context {}), batch {}, "
        "autocast to {}",
        kContext, batch, dtype);
  };
  const auto report = [&](const char* part, const char* dtype, double ours, double base,
                          const char* note) {
    const double ratio = ours / base;
    context.report({.part = fmt::format("{}_{}", part, dtype),
                    .setting = setting(dtype),
                    .baseline = "float32",
                    .measured = {ratio, ratio, ratio},
                    .bar = kNoBar,
                    .note = fmt::format("{:.1f} MiB against {:.1f} MiB; {}", ours / 1048576,
                                        base / 1048576, note)});
  };
  const double base = activations(batch, std::nullopt), base_process = process(context, "float32");
  for (const auto& [dtype, name] :
       {std::pair(at::kBFloat16, "bfloat16"), std::pair(at::kHalf, "float16")}) {
    report("activations", name, activations(batch, dtype), base,
           "peak of tensors in forward and backward, beyond parameters and gradients");
    report("process", name, process(context, name), base_process,
           "growth of the resident peak over two steps with AdamW, in a process of its own; "
           "gradients and moments, float32 on both sides, are part of it");
  }
}

const bool registered = add_claim({.name = "autocast_memory",
                                   .group = "precision",
                                   .promise = "what 16-bit autocast saves of a GPT's memory",
                                   .measure = measure,
                                   .minutes = 1});

}  // namespace
}  // namespace torchlore::claims
