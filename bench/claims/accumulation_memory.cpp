// Accumulating to a large batch takes the memory of a micro-batch.
#include <ATen/ops/randint.h>
#include <fmt/format.h>
#include <torch/nn/functional/loss.h>
#include <torch/optim/adamw.h>

#include "../../examples/train_text/gpt.hpp"
#include "claim.hpp"
#include "harness/statistics.hpp"
#include "torchlore/memory/memory_meter.hpp"
#include "torchlore/step.hpp"

namespace torchlore::claims {
namespace {

constexpr int64_t kContext = 128;
constexpr int64_t kVocabulary = 256;

at::Tensor loss(text::GPT& model, int64_t batch) {
  const auto ids = at::randint(kVocabulary, {batch, kContext + 1});
  const auto logits = model->forward(ids.slice(1, 0, kContext));
  return torch::nn::functional::cross_entropy(logits.flatten(0, 1), ids.slice(1, 1).flatten());
}

/// The peak of a training run: parameters, gradients, optimizer state and activations.
template <typename TrainingRun>
double peak_bytes(const TrainingRun& run) {
  const MemoryMeter meter;
  text::GPT model(text::GPTOptions{.vocabulary = kVocabulary, .context = kContext});
  torch::optim::AdamW optimizer(model->parameters());
  run(model, optimizer);
  return static_cast<double>(meter.peak().count());
}

/// Two steps: the second meets the optimizer state that the first made.
void plain_steps(text::GPT& model, torch::optim::AdamW& optimizer, int64_t batch) {
  for (int i = 0; i < 2; ++i) {
    optimizer.zero_grad();
    loss(model, batch).backward();
    optimizer.step();
  }
}

void measure(Context& context) {
  const int64_t batch = context.quick() ? 2 : 32;
  const int64_t batches = context.quick() ? 2 : 2048 / batch;
  const double micro = peak_bytes([&](text::GPT& model, torch::optim::AdamW& optimizer) {
    plain_steps(model, optimizer, batch);
  });
  const double whole = peak_bytes([&](text::GPT& model, torch::optim::AdamW& optimizer) {
    TrainingStep step(optimizer, {.accumulate = Accumulate::batches(batches)});
    // A window, and the start of another: its second micro-batch meets parameters, gradients and
    // optimizer state together.
    for (int64_t i = 0; i < batches + 2; ++i) step([&] { return loss(model, batch); });
  });
  context.report(
      {.setting = fmt::format("GPT of examples/train_text (4 layers, width 256, context {}), "
                              "AdamW, {} micro-batches of {} = {}",
                              kContext, batches, batch, batches * batch),
       .baseline = "a plain loop that steps after each micro-batch",
       .measured = ratio({whole}, {micro}),
       .bar = 1.05,
       .note = fmt::format("peak of LibTorch's CPU allocator: {:.1f} MiB against {:.1f} MiB; "
                           "allocations do not vary, so one run of each",
                           whole / 1048576, micro / 1048576)});
}

const bool registered = add_claim({.name = "accumulation_memory",
                                   .group = "gradient",
                                   .promise = "accumulating to 2,048 takes a micro-batch's memory",
                                   .measure = measure,
                                   .minutes = 3,
                                   .threads_matter = false});

}  // namespace
}  // namespace torchlore::claims
