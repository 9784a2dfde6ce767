// Other head dims, grouped heads, unequal lengths and AVX2: are they as near to the machine's peak?
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include "../../src/attention/kernels/attention_kernels.hpp"
#include "../../src/core/buffer_pool.hpp"
#include "../../src/core/kernels/element_of.hpp"
#include "claim.hpp"
#include "models/attention_task.hpp"

namespace torchlore::claims {
namespace {

using namespace models;

/// The bar is 1.3: as many additions and multiplications a second as the bar of head dim 64 asks for,
/// divided by 1.3.
constexpr double kBar = 1.3;
constexpr double kShare = 0.25;

/// Multiplications of one product of the scores' shape.
double work(const AttentionShape& shape) {
  return static_cast<double>(shape.queries * shape.keys * shape.heads * shape.dim);
}

struct Shape {
  const char* name;
  AttentionShape shape;
};

std::vector<Shape> shapes(int64_t n) {
  return {{"head dim 32", {.queries = n, .keys = n, .dim = 32}},
          {"head dim 80", {.queries = n, .keys = n, .dim = 80}},
          {"head dim 128", {.queries = n, .keys = n, .dim = 128}},
          {"head dim 256", {.queries = n, .keys = n, .heads = 4, .key_heads = 4, .dim = 256}},
          {"8 heads on 2 key heads", {.queries = n, .keys = n, .heads = 8, .key_heads = 2}},
          {"a quarter as many queries as keys", {.queries = n / 4, .keys = n}}};
}

/// Time per multiplication over that of dense attention with head dim 64, and over the bar of 64.
void compare(Context& context, const Shape& shape, int64_t n, at::ScalarType dtype,
             const DensityBar& forward_bar, const DensityBar& backward_bar) {
  const AttentionShape plain{.queries = n, .keys = n};
  const AttentionTask base(plain, dtype), task(shape.shape, dtype);
  const auto mask = random_mask(shape.shape.queries, shape.shape.keys, kShare);
  const double more_work = work(shape.shape) / work(plain);
  for (const bool forward : {true, false}) {
    const auto& bar = forward ? forward_bar : backward_bar;
    const std::vector<Contender> contenders = {
        forward ? base.dense_forward() : base.dense_backward(),
        forward ? task.sparse_forward(mask) : task.sparse_backward(mask)};
    auto sampling = Sampling::of(context);
    if (!context.quick()) sampling = {.rounds = 9, .warmup = 1, .min_seconds = 0.02};
    const auto seconds = interleave(contenders, sampling);
    context.report(
        {.part = fmt::format("{}, {}, {}", shape.name, name_of(dtype),
                             forward ? "forward" : "backward"),
         .setting = fmt::format("batch 1, {}, {}, {} queries, {} keys, {}", shape.name,
                                name_of(dtype), shape.shape.queries, shape.shape.keys, mask.text()),
         .baseline =
             "the bar for 8 heads of 64 dims, by scaled_dot_product_attention's speed there; both "
             "per multiplication",
         .measured = over(ratio(seconds[1], seconds[0]), more_work * bar.at(mask.density())),
         .bar = kBar,
         .note = absolute_times(contenders, seconds)});
  }
}

// ---- AVX2, held to its own peak ----

#if defined(__x86_64__)
typedef float Wide __attribute__((vector_size(64)));
typedef float Narrow __attribute__((vector_size(32)));

/// Multiplies and adds in 12 registers, which hides the latency. Returns the sum so that the loop stays.
template <typename V>
[[gnu::always_inline]] inline float multiply_add(int64_t times) {
  V sums[12];
  for (int i = 0; i < 12; ++i) sums[i] = V{} + static_cast<float>(i);  // equal ones would be one
  const V a = V{} + 1e-3F;
  V b = V{} + 0.5F;
  for (int64_t i = 0; i < times; ++i) {
#pragma GCC unroll 12
    for (auto& sum : sums) sum = sum * b + a;
    asm volatile("" : "+v"(b));
  }
  float total = 0;
  for (const auto& sum : sums) total += sum[0];
  return total;
}
[[gnu::target("avx512f,fma"), gnu::noinline]] float peak_512(int64_t times) {
  return multiply_add<Wide>(times);
}
[[gnu::target("avx2,fma"), gnu::noinline]] float peak_256(int64_t times) {
  return multiply_add<Narrow>(times);
}

/// Times the registers' peak: `times` rounds of 12 vectors.
Contender peak(float (*loop)(int64_t), const char* name) {
  return timed(name, [loop] {
    volatile float sink = loop(1'000'000);
    static_cast<void>(sink);
  });
}

/// The kernels of one set on the layout, forward.
class ForcedSet {
 public:
  ForcedSet(const char* name, const AttentionShape& shape, const TimedMask& mask)
      : kernels_(kernels::block_kernels(name)),
        q_(at::randn({1, shape.heads, shape.queries, shape.dim})),
        k_(at::randn_like(q_)),
        v_(at::randn_like(q_)),
        out_(at::empty_like(q_)),
        sums_(at::empty({1, shape.heads, shape.queries})),
        tiles_(static_cast<size_t>(shape.heads), &mask.layout.pattern(0, 0)) {
    problem_ = {.heads = shape.heads,
                .key_heads = shape.heads,
                .queries = shape.queries,
                .keys = shape.keys,
                .head_dim = shape.dim,
                .value_dim = shape.dim,
                .q = rows(q_),
                .k = rows(k_),
                .v = rows(v_),
                .layouts = tiles_.data(),
                .scale = 0.125};
  }

  bool runs() const { return kernels_ != nullptr; }
  void forward() {
    kernels::attention_forward(problem_, rows(out_), sums_.mutable_data_ptr(), scratch_, nullptr,
                               kernels_);
  }

 private:
  static kernels::Rows rows(at::Tensor& t) {
    return {t.mutable_data_ptr(), t.stride(0), t.stride(1), t.stride(2)};
  }

  const kernels::BlockKernels* kernels_;
  at::Tensor q_, k_, v_, out_, sums_;
  std::vector<const TileLayout*> tiles_;
  kernels::AttentionProblem problem_;
  detail::BufferPool scratch_{1 << 24};
};

void avx2(Context& context, int64_t n, const DensityBar& bar) {
  const AttentionShape shape{.queries = n, .keys = n};
  const auto mask = random_mask(n, n, kShare);
  ForcedSet narrow("avx2", shape, mask);
  Line line{.part = "AVX2, float32, forward",
            .setting = fmt::format("batch 1, 8 heads of 64, float32, n = {}, {}", n, mask.text()),
            .baseline =
                "the bar for AVX-512, by scaled_dot_product_attention's speed; both as shares of "
                "the peak of "
                "the set's own registers, on one thread",
            .bar = kBar};
  if (!narrow.runs() || !ForcedSet("avx512", shape, mask).runs()) {
    line.note = "not measured: this machine lacks one of the sets";
    context.report(line);
    return;
  }
  at::set_num_threads(1);
  const AttentionTask base(shape, at::kFloat);
  const std::vector<Contender> contenders = {
      base.dense_forward(), timed("AVX2", [&] { narrow.forward(); }),
      peak(peak_512, "AVX-512 peak"), peak(peak_256, "AVX2 peak")};
  const auto seconds = interleave(contenders, Sampling::of(context));
  at::set_num_threads(static_cast<int>(context.threads()));
  // A round of the narrow loop does half the work of one of the wide loop.
  const double narrower = 2 * median(seconds[3]) / median(seconds[2]);
  line.measured = over(ratio(seconds[1], seconds[0]), bar.at(mask.density()) * narrower);
  line.note = fmt::format("the peak of AVX2 is {:.2f} of that of AVX-512 here; {}", 1 / narrower,
                          absolute_times(contenders, seconds));
  context.report(line);
}
#endif

void measure(Context& context) {
  const int64_t n = context.quick() ? 512 : 4'096;
  const DensityBar forward{0.90, 0.012}, backward{0.85, 0.012};
  const DensityBar low_forward{0.50, 0.01}, low_backward{0.62, 0.012};
  for (const auto& shape : shapes(n)) {
    compare(context, shape, n, at::kFloat, forward, backward);
    compare(context, shape, n, at::kBFloat16, low_forward, low_backward);
  }
#if defined(__x86_64__)
  avx2(context, n, forward);
#endif
}

const bool registered = add_claim(
    {.name = "attention_shapes",
     .group = "attention",
     .promise = "head dims, grouped heads, unequal lengths and AVX2 are as near to the peak",
     .measure = measure,
     .minutes = 4});

}  // namespace
}  // namespace torchlore::claims
