// How exact sparse attention is, and that it computes what its mask says and nothing else.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "../../src/attention/cpu_attention.hpp"
#include "../../src/attention/kernels/attention_kernels.hpp"
#include "attention/attention_oracle.hpp"
#include "claim.hpp"
#include "torchlore/attention/sparse_attention.hpp"

namespace torchlore::claims {
namespace {

using at::Tensor;
using testing::AttentionAnswer;
using testing::AttentionCase;

std::vector<std::pair<std::string, MaskSpec>> masks() {
  const auto causal = mask::causal();
  return {{"dense", mask::all()},
          {"causal", causal},
          {"window 512 and 4 sinks", causal & (mask::window(512) | mask::sinks(4))},
          {"random blocks", causal & mask::random_sparsity(0.8, 7)},
          {"strided", causal & (mask::window(64) | mask::strided(64))}};
}

Tensor numbers(at::IntArrayRef shape, at::ScalarType dtype) {
  return at::randn(shape, at::kDouble).to(dtype);
}

AttentionCase random_case(int64_t n, at::ScalarType dtype, const BlockLayout& layout) {
  const std::vector<int64_t> shape{1, 2, n, 64};
  return {numbers(shape, dtype), numbers(shape, dtype), numbers(shape, dtype), layout.to_dense()};
}

AttentionAnswer sparse(const AttentionCase& c, const BlockLayout& layout, const Tensor& upstream,
                       bool enable_gqa = false) {
  auto leaf = c;
  for (auto* x : {&leaf.query, &leaf.key, &leaf.value}) *x = x->detach().requires_grad_();
  const auto result = sparse_attention_with_lse(leaf.query, leaf.key, leaf.value, layout,
                                                {.enable_gqa = enable_gqa});
  const auto grads =
      torch::autograd::grad({result.output}, {leaf.query, leaf.key, leaf.value}, {upstream});
  return {result.output.detach(), result.log_sum_exp.detach(), grads[0], grads[1], grads[2]};
}

// Error, held to that of plain attention in the same dtype.

struct Errors {
  double largest = 0, mean_square = 0;
};

Errors errors(const Tensor& x, const Tensor& golden, double allowance) {
  const auto difference = x.to(at::kDouble) - golden;
  return {std::max(0.0, difference.abs().max().item<double>() - allowance),
          std::sqrt(difference.square().mean().item<double>())};
}

/// One unit in the last place of the largest value.
double last_place(const Tensor& x, at::ScalarType dtype) {
  const int digits = dtype == at::kBFloat16 ? 7 : 10;
  return std::ldexp(1, std::ilogb(x.abs().max().item<double>()) - digits);
}

/// The worst ratios over output and gradients.
Errors worst_ratio(const AttentionAnswer& ours, const AttentionAnswer& eager,
                   const AttentionAnswer& golden, at::ScalarType dtype) {
  Errors worst;
  for (const auto& [a, b, g] : {std::tuple(ours.output, eager.output, golden.output),
                                {ours.query, eager.query, golden.query},
                                {ours.key, eager.key, golden.key},
                                {ours.value, eager.value, golden.value}}) {
    const auto mine = errors(a, g, dtype == at::kFloat ? 0 : last_place(g, dtype));
    const auto theirs = errors(b, g, 0);
    worst.largest = std::max(worst.largest, mine.largest / theirs.largest);
    worst.mean_square = std::max(worst.mean_square, mine.mean_square / theirs.mean_square);
  }
  return worst;
}

void report_errors(Context& context, at::ScalarType dtype, const char* name) {
  Errors worst;
  std::vector<int64_t> lengths{65, 1023};
  if (!context.quick()) lengths.insert(lengths.end(), {1024, 2048});
  for (const int64_t n : lengths) {
    for (const auto& [text, spec] : masks()) {
      const auto layout = BlockLayout::build(spec, n, n);
      const auto c = random_case(n, dtype, layout);
      const auto upstream = numbers({1, 2, n, 64}, dtype);
      const auto ratio = worst_ratio(sparse(c, layout, upstream), testing::eager(c, upstream),
                                     testing::golden(c, upstream), dtype);
      worst.largest = std::max(worst.largest, ratio.largest);
      worst.mean_square = std::max(worst.mean_square, ratio.mean_square);
    }
  }
  const bool full = dtype == at::kFloat;
  const std::string setting = std::string(name) + ", 5 masks, lengths 65 to 2048, H2 D64";
  const std::string note = "worst of output and the gradients of query, key and value; 1 seed";
  context.report({.part = std::string("largest error ") + name,
                  .setting = setting,
                  .baseline = "the error of plain attention in the same dtype against float64",
                  .measured = {worst.largest},
                  .bar = full ? 5 : 1.1,
                  .note = full ? note : note + "; less one unit in the last place"});
  context.report({.part = std::string("mean square error ") + name,
                  .setting = setting,
                  .baseline = "the error of plain attention in the same dtype against float64",
                  .measured = {worst.mean_square},
                  .bar = full ? kNoBar : 1,
                  .note = note});
}

// Gradients against central differences.

void report_gradients(Context& context) {
  const auto spec =
      (mask::causal() & mask::window(9)).aligned(Align::bottom_right) | mask::sinks(2);
  const auto layout = BlockLayout::build(spec, 5, 70);
  std::vector<Tensor> inputs{at::randn({1, 2, 5, 3}, at::kDouble),
                             at::randn({1, 1, 70, 3}, at::kDouble),
                             at::randn({1, 1, 70, 2}, at::kDouble)};
  const auto upstream = at::randn({1, 2, 5, 2}, at::kDouble);
  const auto found = sparse({inputs[0], inputs[1], inputs[2], {}}, layout, upstream, true);
  const std::vector<Tensor> gradients{found.query, found.key, found.value};
  constexpr double kStep = 1e-5;
  double worst = 0;
  for (size_t i = 0; i < inputs.size(); ++i) {
    for (int64_t j = 0; j < inputs[i].numel(); ++j) {
      const auto loss = [&](double by) {
        auto moved = inputs;
        moved[i] = inputs[i].clone();
        moved[i].mutable_data_ptr<double>()[j] += by;
        return (sparse_attention(moved[0], moved[1], moved[2], layout, {.enable_gqa = true}) *
                upstream)
            .sum()
            .item<double>();
      };
      const double expected = (loss(kStep) - loss(-kStep)) / (2 * kStep);
      worst = std::max(worst, std::abs(gradients[i].flatten()[j].item<double>() - expected));
    }
  }
  context.report({.part = "gradient check",
                  .setting = "float64, 5 queries of 2 heads on 70 keys of 1",
                  .baseline = "central differences, step 1e-5",
                  .measured = {worst},
                  .unit = "largest difference",
                  .bar = 1e-8});
}

// Poison: what is skipped is not read.

void report_poison(Context& context) {
  int64_t seen = 0;
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble}) {
    const int64_t n = 1024, hidden = 300;
    const auto spec = mask::causal() & mask::window(100) & !mask::sinks(hidden);
    const auto layout = BlockLayout::build(spec, n, n);
    auto c = random_case(n, dtype, layout);
    const auto upstream = numbers({1, 2, n, 64}, dtype);
    c.key.narrow(2, 0, hidden).fill_(std::numeric_limits<double>::quiet_NaN());
    c.value.narrow(2, 0, hidden).fill_(std::numeric_limits<double>::quiet_NaN());
    const auto result = sparse(c, layout, upstream);
    for (const auto& x : {result.output, result.query, result.key, result.value}) {
      seen += x.isnan().sum().item<int64_t>();
    }
  }
  context.report({.part = "poison",
                  .setting = "NaN in 300 keys and values that the mask hides, 4 dtypes, n 1024",
                  .baseline = "nothing",
                  .measured = {static_cast<double>(seen)},
                  .unit = "NaN in output and gradients",
                  .bar = 0});
}

// Tiles computed are those of the layout.

void report_tiles(Context& context) {
  double difference = 0;
  for (const int64_t n : {1, 1000, 4096}) {
    for (const auto& [text, spec] : masks()) {
      const auto layout = BlockLayout::build(spec, n, n);
      const auto x = at::randn({1, 2, n, 64});
      const attention::Inputs inputs{x, x, x, std::nullopt, std::nullopt};
      const attention::Settings settings{c10::make_intrusive<attention::Pattern>(layout), 0.125};
      kernels::AttentionStatistics forward;
      attention::cpu_forward(inputs, settings, attention::tiles_of_call(inputs, settings),
                             &forward);
      const auto tiles = 2 * static_cast<int64_t>(layout.pattern(0, 0).column.size());
      difference =
          std::max(difference, std::abs(static_cast<double>(forward.executed_tiles - tiles)));
    }
  }
  context.report({.part = "tiles",
                  .setting = "5 masks, n 1 to 4096, float32 forward",
                  .baseline = "tiles in the layout",
                  .measured = {difference},
                  .unit = "tiles more or less",
                  .bar = 0});
}

// Random masks against the definition.

void report_random(Context& context) {
  int64_t wrong = 0;
  const uint64_t count = context.quick() ? 30 : 300;
  for (uint64_t seed = 0; seed < count; ++seed) {
    testing::RandomMasks random(seed);
    const int64_t queries = 1 + random.pick(100), keys = 1 + random.pick(100);
    const auto spec = random.next(queries, keys);
    const auto layout = BlockLayout::build(spec, queries, keys, {.heads = 2});
    AttentionCase c{
        at::randn({1, 2, queries, 16}, at::kDouble), at::randn({1, 2, keys, 16}, at::kDouble),
        at::randn({1, 2, keys, 8}, at::kDouble), testing::brute_force(spec, 1, 2, queries, keys)};
    const auto upstream = at::randn({1, 2, queries, 8}, at::kDouble);
    const auto ours = sparse(c, layout, upstream);
    const auto golden = testing::golden(c, upstream);
    const auto equal = [](const Tensor& a, const Tensor& b) {
      return at::allclose(a, b, 1e-12, 1e-13);
    };
    if (!equal(ours.output, golden.output) || !equal(ours.query, golden.query) ||
        !equal(ours.key, golden.key) || !equal(ours.value, golden.value)) {
      ++wrong;
    }
  }
  context.report({.part = "random masks",
                  .setting = "300 random masks, float64, 1 to 100 queries and keys",
                  .baseline = "every pair asked of the mask, plain attention",
                  .measured = {static_cast<double>(wrong)},
                  .unit = "masks with another output or gradient",
                  .bar = 0});
}

void measure(Context& context) {
  at::manual_seed(2026);
  report_errors(context, at::kFloat, "float32");
  report_errors(context, at::kBFloat16, "bfloat16");
  report_errors(context, at::kHalf, "float16");
  report_gradients(context);
  report_poison(context);
  report_tiles(context);
  report_random(context);
}

const bool registered =
    add_claim({.name = "attention_correctness",
               .group = "attention",
               .promise = "sparse attention is as exact as plain attention, and "
                          "reads nothing that its mask hides",
               .measure = measure,
               .minutes = 1,
               .threads_matter = false});

}  // namespace
}  // namespace torchlore::claims
