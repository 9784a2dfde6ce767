// A small GPT on windows of 4,096 tokens of real text, in which a key has to be found again from far
// back: with all of its causal attention, and with seven tenths of it left out. One line is added to
// the loop; the model is not touched.

#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <optional>
#include <string>

#include "long_context/task.hpp"
#include "torchlore/attention/block_layout.hpp"

namespace lc = long_context;
namespace tl = torchlore;

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void run(const char* name, const lc::Settings& settings, const text::Corpus& corpus,
         int64_t windows, const std::optional<tl::MaskSpec>& spec) {
  const auto n = settings.context;
  const auto begin = std::chrono::steady_clock::now();
  auto model = lc::train(settings, corpus.training, spec);
  const double training = seconds_since(begin);
  const auto then = std::chrono::steady_clock::now();
  const auto score = lc::evaluate(model, corpus.held_out, n, windows, spec);
  const double inference = seconds_since(then) / static_cast<double>(windows);
  const auto layout =
      tl::BlockLayout::build(spec.value_or(tl::mask::causal()), n, n, {.heads = settings.heads});
  fmt::print("{:<16}{:>9.2f}{:>12.1f} s{:>12.3f} s{:>10.3f}{:>9.1f} %{:>9.1f} %\n", name,
             layout.density(), training, inference, score.loss, 100 * score.text_accuracy,
             100 * score.recall);
  std::fflush(stdout);  // the next one takes a while
}

int main(int argc, char** argv) {
  const bool quick = argc > 1 && std::strcmp(argv[1], "--quick") == 0;
  lc::Settings settings;
  if (quick) {
    settings.context = 256;
    settings.stages = {{64, 4, 4}, {256, 1, 2}};
  }
  const int64_t windows = quick ? 1 : 16;
  const auto corpus = text::read_headers(TORCHLORE_LIBTORCH_INCLUDE);
  fmt::print("{:<16}{:>9}{:>14}{:>14}{:>10}{:>11}{:>11}\n", "attention", "density", "training",
             "a window", "loss", "bytes", "key found");
  run("causal", settings, corpus, windows, std::nullopt);
  run("random blocks", settings, corpus, windows, lc::random_mask(0.7));
  run("window only", settings, corpus, windows, lc::window_mask(0.7, settings.context));
}
