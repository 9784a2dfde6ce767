// Unscale, check and clip in one read and at most one write, against the passes Python makes.
#include "torchlore/core/gradient_pass.hpp"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/scalar_tensor.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <torch/optim/sgd.h>

#include <cmath>

#include "claim.hpp"
#include "harness/parameters.hpp"
#include "harness/peer.hpp"
#include "harness/timing.hpp"
#include "torchlore/core/parameters.hpp"
#include "torchlore/precision/loss_scaler.hpp"

namespace torchlore::claims {
namespace {

// The bound is 1 and 2 in turn, and with a loss scale of 1/4 clipping is always active: the
// gradients go from norm 2 to 1 and back, so that every run does all of the work, and does not wear
// them out.
constexpr double kScale = 0.25;

class Pass {
 public:
  explicit Pass(const Sizes& sizes) : optimizer_(sizes.parameters(), 0.1) {
    scaler_.scale(at::scalar_tensor(1.0));
  }

  /// What a step that writes gradients does.
  void write() { scaler_.unscale_and_clip_(optimizer_, max_norm_); }

  /// What is left where the optimizer divides: it does that while it reads the gradients anyway.
  at::Tensor divisor() {
    const auto stats = gradient_stats(gradients(optimizer_));
    return clip_to_norm(stats.norm, scaler_.scale_tensor(at::kCPU), max_norm_).divisor;
  }

  /// Opens the next step, for which the scaler asks.
  void prepare() {
    scaler_.update(kScale);
    max_norm_ = 3 - max_norm_;
  }

  /// Stops a comparison in which our side did not do the work.
  void check() const {
    const double norm = gradient_stats(gradients(optimizer_)).norm.item<double>();
    TORCH_CHECK(std::abs(norm - max_norm_) < 1e-3, "clipping to ", max_norm_, " left norm ", norm);
  }

 private:
  torch::optim::SGD optimizer_;
  LossScaler scaler_{{.init_scale = kScale}};
  double max_norm_ = 1;
};

// The least that any implementation must do: read everything once, then multiply it in place. Plain
// loops over one flat array, as vectorised as the machine allows.
__attribute__((target_clones("avx512f", "avx2", "default"))) double sum_squares(const float* data,
                                                                                int64_t count) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) sum += data[i] * data[i];
  return sum;
}

__attribute__((target_clones("avx512f", "avx2", "default"))) void multiply(float* data,
                                                                           int64_t count,
                                                                           float by) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) data[i] *= by;
}

void bare_loops(float* data, int64_t count, volatile double& sink) {
  constexpr int64_t kPiece = 65536;
  std::vector<double> parts(static_cast<size_t>((count + kPiece - 1) / kPiece));
  const auto pieces = static_cast<int64_t>(parts.size());
  const auto size = [&](int64_t i) { return std::min(kPiece, count - i * kPiece); };
  at::parallel_for(0, pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      parts[static_cast<size_t>(i)] = sum_squares(data + i * kPiece, size(i));
    }
  });
  for (const double part : parts) sink = sink + part;
  at::parallel_for(0, pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) multiply(data + i * kPiece, size(i), 1.0F);
  });
}

struct Sides {
  std::vector<Contender> contenders;
  std::vector<std::vector<double>> seconds;
  std::string python;
  size_t written = 0, handed = 1, libtorch = 2, loops = 3, peer = 4;
};

Sides run(const Context& context, const Sizes& sizes) {
  Pass pass(sizes);
  auto flat = at::randn({sizes.tensors * sizes.elements});
  const auto keep = at::scalar_tensor(1.0);
  volatile double sink = 0;
  Sides sides;
  sides.contenders = {
      timed(
          "written", [&] { pass.write(); }, [&] { pass.prepare(); }),
      timed("handed to the optimizer", [&] { pass.divisor(); }),
      timed("bare LibTorch kernels",
            [&] {
              at::linalg_vector_norm(flat);
              flat.mul_(keep);
            }),
      timed("bare loops", [&] { bare_loops(flat.mutable_data_ptr<float>(), flat.numel(), sink); })};
  Peer peer(context, "gradient_pass.py", sizes.arguments());
  sides.python = "GradScaler.unscale_ + clip_grad_norm_(foreach=True)";
  if (peer.installed()) {
    sides.contenders.push_back(peer.contender("Python"));
    sides.python += ", " + peer.version();
  }
  sides.seconds = interleave(sides.contenders, Sampling::of(context));
  pass.check();
  return sides;
}

void report_python(Context& context, const Sides& sides, Line line) {
  const bool installed = sides.seconds.size() > sides.peer;
  line.baseline = sides.python;
  if (installed) {
    const auto& ours = sides.seconds[line.part.ends_with("handed") ? sides.handed : sides.written];
    line.measured = ratio(ours, sides.seconds[sides.peer]);
  }
  line.note = installed ? absolute_times(sides.contenders, sides.seconds) : kPeerMissing;
  context.report(line);
}

void report_traffic(Context& context, const Sides& sides, Line line) {
  const auto& libtorch = sides.seconds[sides.libtorch];
  const auto& loops = sides.seconds[sides.loops];
  const bool loops_win = median(loops) < median(libtorch);
  line.baseline =
      loops_win
          ? "one bare read and one multiply: plain vectorised loops over one flat array"
          : "one bare read and one multiply: linalg_vector_norm and mul_ over one flat tensor";
  line.measured = ratio(sides.seconds[sides.written], loops_win ? loops : libtorch);
  line.note = absolute_times(sides.contenders, sides.seconds);
  context.report(line);
}

void measure(Context& context) {
  const int64_t shrink = context.quick() ? 100 : 1;
  for (const auto& sizes : {Sizes{100, 1'000'000 / shrink}, Sizes{1000, 100'000 / shrink}}) {
    const auto sides = run(context, sizes);
    const auto part = fmt::format("{}_tensors/", sizes.tensors);
    const auto setting = sizes.text() + ", clipping active";
    report_python(context, sides, {.part = part + "written", .setting = setting, .bar = 0.70});
    report_python(context, sides, {.part = part + "handed", .setting = setting, .bar = 0.35});
    report_traffic(context, sides, {.part = part + "traffic", .setting = setting, .bar = 1.15});
  }
  const Sizes small{2000 / shrink, 1000};
  report_python(
      context, run(context, small),
      {.part = "small_tensors/written", .setting = small.text() + ", clipping active", .bar = 0.5});
}

const bool registered = add_claim({.name = "gradient_pass",
                                   .group = "gradient",
                                   .promise = "unscale, check and clip against Python's passes",
                                   .measure = measure});

}  // namespace
}  // namespace torchlore::claims
