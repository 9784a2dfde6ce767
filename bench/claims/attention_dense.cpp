// Masks that hide nothing, or the future alone, through the sparse kernels: against LibTorch's own kernels for them.
#include <fmt/format.h>

#include "claim.hpp"
#include "models/attention_task.hpp"

namespace torchlore::claims {
namespace {

using namespace models;

void compare(Context& context, at::ScalarType dtype, double bar) {
  const int64_t n = context.quick() ? 512 : 4'096;
  const AttentionTask task({.queries = n, .keys = n}, dtype);
  const auto dense = dense_mask(n, n), causal = causal_mask(n);
  const std::vector<Contender> contenders = {task.dense_forward(), task.dense_forward(true),
                                             task.sparse_forward(dense),
                                             task.sparse_forward(causal)};
  const auto seconds = interleave(contenders, Sampling::of(context));
  const auto note = absolute_times(contenders, seconds);
  for (size_t i = 0; i < 2; ++i) {
    context.report(
        {.part = fmt::format("{}, {}", i == 0 ? "dense" : "causal", name_of(dtype)),
         .setting = fmt::format("batch 1, 8 heads of 64, {}, n = {}, forward", name_of(dtype), n),
         .baseline =
             fmt::format("scaled_dot_product_attention, {}", i == 0 ? "no mask" : "is_causal"),
         .measured = ratio(seconds[i + 2], seconds[i]),
         .bar = bar,
         .note = note});
  }
}

void measure(Context& context) {
  compare(context, at::kFloat, 0.85);
  compare(context, at::kBFloat16, 0.48);
}

const bool registered = add_claim(
    {.name = "attention_dense",
     .group = "attention",
     .promise = "dense and causal attention through the sparse kernels against LibTorch's own",
     .measure = measure,
     .minutes = 2});

}  // namespace
}  // namespace torchlore::claims
