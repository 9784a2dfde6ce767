// The GPT of train_text, untouched, in a quarter of its activation memory. One line is added to the
// loop; the losses and the weights stay the same, bit for bit.

#include <fmt/format.h>
#include <torch/nn/utils/convert_parameters.h>
#include <torch/optim/adamw.h>

#include <chrono>
#include <cstring>
#include <optional>
#include <torchlore/core/bytes.hpp>
#include <torchlore/memory/activation_budget.hpp>
#include <torchlore/memory/memory_meter.hpp>

#include "train_text/corpus.hpp"
#include "train_text/gpt.hpp"
#include "train_text/run.hpp"

namespace tl = torchlore;

/// What a few steps of training took, and where they led.
struct Outcome {
  tl::Bytes activations;  // the most that a loss held
  tl::Bytes peak;         // the most that a step took, gradients and optimizer state included
  double seconds;         // of one step
  double loss;            // the last one
  at::Tensor weights;
};

Outcome train(const text::Run& run, std::optional<tl::Bytes> limit) {
  auto model = run.make_model();
  torch::optim::AdamW optimizer(model->parameters(), run.settings.learning_rate);
  const tl::MemoryMeter meter;
  Outcome outcome{};
  const auto begin = std::chrono::steady_clock::now();
  for (int64_t step = 0; step < run.settings.steps; ++step) {
    optimizer.zero_grad();
    const auto before = meter.current();
    at::Tensor loss;
    {
      std::optional<tl::ActivationBudget> budget;
      if (limit) budget.emplace(*limit);  // the added line
      loss = text::next_byte_loss(model, run.batch(step, 0));
    }
    outcome.activations = std::max(outcome.activations, meter.current() - before);
    loss.backward();
    optimizer.step();
    outcome.loss = loss.item<double>();
  }
  const std::chrono::duration<double> time = std::chrono::steady_clock::now() - begin;
  outcome.seconds = time.count() / static_cast<double>(run.settings.steps);
  outcome.peak = meter.peak();
  outcome.weights = torch::nn::utils::parameters_to_vector(model->parameters()).detach();
  return outcome;
}

void print(const char* name, const Outcome& outcome) {
  fmt::print("{:<18}{:>14}{:>14}{:>10.3f} s{:>14.9f}\n", name, tl::to_string(outcome.activations),
             tl::to_string(outcome.peak), outcome.seconds, outcome.loss);
}

int main(int argc, char** argv) {
  text::Settings settings;
  settings.device = "cpu";
  settings.steps = 20;
  if (argc > 1 && std::strcmp(argv[1], "--quick") == 0) text::make_quick(settings);
  const auto corpus = text::read_headers(TORCHLORE_LIBTORCH_INCLUDE);
  const text::Run run(settings, corpus);

  const auto plain = train(run, std::nullopt);
  const auto quarter = train(run, tl::Bytes(plain.activations.count() / 4));

  fmt::print("{:<18}{:>14}{:>14}{:>12}{:>14}\n", "", "activations", "peak", "a step", "loss");
  print("as it is", plain);
  print("in a quarter", quarter);
  const bool same = plain.loss == quarter.loss && at::equal(plain.weights, quarter.weights);
  fmt::print("After {} steps losses and weights are {}.\n", settings.steps,
             same ? "the same, bit for bit" : "NOT the same");
  return same ? 0 : 1;
}
