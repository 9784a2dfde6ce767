// Most of the attention of a trained model left out: how much sooner it answers, and what that costs
// in text and in finding a key from far back. The model and the task are those of
// examples/long_context.
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "claim.hpp"
#include "claim_paths.hpp"
#include "harness/statistics.hpp"
#include "harness/timing.hpp"
#include "long_context/task.hpp"
#include "torchlore/attention/block_layout.hpp"

namespace torchlore::claims {
namespace {

namespace lc = long_context;

/// A model that was trained with one attention, and what it reached for each seed.
struct Arm {
  std::string name;
  std::string describe;
  std::optional<MaskSpec> spec;
  double bar_speed = kNoBar;
  double bar_quality = kNoBar;
  std::vector<double> loss = {}, text = {}, recall = {};
  std::optional<text::GPT> model = std::nullopt;  ///< of the first seed
};

std::vector<Arm> arms(int64_t length) {
  // 41 % more speed at 98 % of the accuracy.
  constexpr double kSpeed = 1 / 1.41, kQuality = 1 / 0.98;
  std::vector<Arm> all{{.name = "dense", .describe = "", .spec = std::nullopt}};
  for (const double sparsity : {0.7, 0.6}) {
    all.push_back({.name = fmt::format("sparsity_{}", sparsity),
                   .describe = fmt::format("blocks at random, sparsity {}, window 64", sparsity),
                   .spec = lc::random_mask(sparsity),
                   .bar_speed = kSpeed,
                   .bar_quality = kQuality});
  }
  all.push_back({.name = "window_only",
                 .describe = "a window that touches as much as sparsity 0.7",
                 .spec = lc::window_mask(0.7, length)});
  return all;
}

lc::Settings settings_for(int64_t length, uint64_t seed, bool quick) {
  lc::Settings s{.context = length, .seed = seed};
  s.stages = {{64, 16, 200}, {512, 4, 100}, {length, 1, length > 4096 ? 40 : 80}};
  if (quick) s.stages = {{64, 2, 3}, {length, 1, 2}};
  return s;
}

void train_all(Context& context, std::vector<Arm>& all, int64_t length,
               const text::Corpus& corpus) {
  const uint64_t seeds = context.quick() ? 1 : length > 4096 ? 2 : 3;
  for (uint64_t seed = 1; seed <= seeds; ++seed) {
    for (auto& arm : all) {
      context.say(fmt::format("{} tokens, {}, seed {}", length, arm.name, seed));
      const auto s = settings_for(length, seed, context.quick());
      auto model = lc::train(s, corpus.training, arm.spec);
      const auto score =
          lc::evaluate(model, corpus.held_out, length, context.quick() ? 1 : 16, arm.spec);
      arm.loss.push_back(score.loss);
      arm.text.push_back(score.text_accuracy);
      arm.recall.push_back(score.recall);
      if (!arm.model) arm.model = model;
    }
  }
}

/// Seconds of one window without gradients: [arm][round].
std::vector<std::vector<double>> time_all(Context& context, std::vector<Arm>& all, int64_t length,
                                          const text::Corpus& corpus) {
  const auto batch = lc::make_batch(corpus.held_out, length, 1, 1);
  std::vector<Contender> contenders;
  for (auto& arm : all) {
    contenders.push_back(timed(arm.name, [&arm, &batch] {
      const at::NoGradGuard no_grad;
      std::optional<SparseAttentionScope> sparse;
      if (arm.spec) sparse.emplace(*arm.spec, SparseAttentionScopeOptions{.allow_dense = false});
      (*arm.model)(batch.input);
    }));
  }
  return interleave(contenders, Sampling::of(context));
}

std::string figures(const char* what, const std::vector<double>& ours,
                    const std::vector<double>& dense) {
  std::string text = fmt::format("{} by seed, ours and dense:", what);
  for (size_t i = 0; i < ours.size(); ++i) text += fmt::format(" {:.4f} {:.4f}", ours[i], dense[i]);
  return text;
}

void report(Context& context, const Arm& arm, const Arm& dense, int64_t length,
            const std::vector<double>& seconds, const std::vector<double>& dense_seconds) {
  const auto layout = BlockLayout::build(*arm.spec, length, length, {.heads = 2});
  Line line{
      .setting = fmt::format("{} tokens, 2 layers, width 64, 2 heads, float32; {} of the causal "
                             "blocks, density {:.3f}",
                             length, arm.describe, layout.density()),
      .baseline = "the same model trained and run with LibTorch's causal attention"};
  const auto part = [&](const char* name) {
    return fmt::format("{}/{}/{}", length, arm.name, name);
  };
  const auto say = [&](const char* name, Estimate measured, double bar, std::string note) {
    line.part = part(name);
    line.measured = measured;
    line.bar = bar;
    line.note = std::move(note);
    context.report(line);
  };
  say("inference", ratio(seconds, dense_seconds), arm.bar_speed,
      fmt::format("one window without gradients: {:.1f} ms, dense {:.1f} ms", 1e3 * median(seconds),
                  1e3 * median(dense_seconds)));
  say("loss", ratio(arm.loss, dense.loss), arm.bar_quality,
      figures("held-out loss of the next byte", arm.loss, dense.loss));
  say("bytes", ratio(dense.text, arm.text), arm.bar_quality,
      "dense accuracy over ours; " +
          figures("share of held-out bytes guessed", arm.text, dense.text));
  say("recall", ratio(dense.recall, arm.recall), arm.bar_quality,
      "dense accuracy over ours; " +
          figures("share of keys found (chance 0.125)", arm.recall, dense.recall));
}

void measure(Context& context) {
  const auto corpus = text::read_headers(TORCHLORE_LIBTORCH_INCLUDE);
  const std::vector<int64_t> lengths =
      context.quick() ? std::vector<int64_t>{256} : std::vector<int64_t>{4096, 8192};
  for (const auto length : lengths) {
    auto all = arms(length);
    train_all(context, all, length, corpus);
    const auto seconds = time_all(context, all, length, corpus);
    for (size_t i = 1; i < all.size(); ++i) {
      report(context, all[i], all[0], length, seconds[i], seconds[0]);
    }
  }
}

const bool registered =
    add_claim({.name = "attention_long_context",
               .group = "attention",
               .promise = "a trained long-context model with most of its attention left out",
               .measure = measure,
               .minutes = 10});

}  // namespace
}  // namespace torchlore::claims
