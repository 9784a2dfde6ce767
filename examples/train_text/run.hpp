#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/empty.h>
#include <c10/core/Device.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <torchlore/core/device.hpp>
#include <utility>

#include "corpus.hpp"
#include "gpt.hpp"
#include "progress.hpp"
#include "record.hpp"
#include "settings.hpp"
#include "stop.hpp"

/// What both sides share: batches, schedule, evaluation, clock. Nothing here is a technique.
namespace text {

struct Batch {
  at::Tensor input;   ///< [B, context] int64
  at::Tensor target;  ///< [B, context] int64: the next byte of each
};

/// A fixed function of its arguments (splitmix64): the order of the text needs no state.
inline uint64_t mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15ULL;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31);
}

inline Batch windows(const std::string& bytes, const std::vector<size_t>& starts, int64_t context,
                     c10::Device device) {
  const auto count = static_cast<int64_t>(starts.size());
  const auto ids = at::empty({count, context + 1}, at::kLong);
  auto* out = ids.data_ptr<int64_t>();
  for (const auto start : starts) {
    for (int64_t i = 0; i <= context; ++i) {
      *out++ = static_cast<unsigned char>(bytes[start + static_cast<size_t>(i)]);
    }
  }
  const auto there = ids.to(device);
  return {there.narrow(1, 0, context), there.narrow(1, 1, context)};
}

/// The mean loss of the next byte, in nats; always computed in float32.
inline at::Tensor next_byte_loss(GPT& model, const Batch& batch) {
  const auto logits = model(batch.input).to(at::kFloat);
  return at::cross_entropy_loss(logits.flatten(0, 1), batch.target.flatten());
}

class Run {
 public:
  Run(const Settings& options, const Corpus& corpus)
      : settings(options), corpus_(corpus), device_(choose_device(options.device)) {
    if (settings.threads > 0) at::set_num_threads(static_cast<int>(settings.threads));
  }

  Batch batch(int64_t step, int64_t micro) const {
    const auto places = corpus_.training.size() - static_cast<size_t>(settings.context);
    std::vector<size_t> starts;
    for (int64_t i = 0; i < settings.batch; ++i) {
      const auto index = (step * settings.accumulate + micro) * settings.batch + i;
      starts.push_back(
          mix(mix(static_cast<uint64_t>(settings.seed)) + static_cast<uint64_t>(index)) % places);
    }
    return windows(corpus_.training, starts, settings.context, device_);
  }

  int64_t warmup_steps() const { return std::max<int64_t>(1, settings.steps / 20); }

  /// A straight warm-up over 5 % of the steps, half a cosine down to a tenth, then a tenth.
  double learning_rate(int64_t step) const {
    const auto total = static_cast<double>(settings.steps);
    const auto warmup = static_cast<double>(warmup_steps());
    const double now = static_cast<double>(step) + 1;
    if (now < warmup) return settings.learning_rate * now / warmup;
    const double part = std::min(1.0, (now - warmup) / std::max(1.0, total - warmup));
    return settings.learning_rate * (0.1 + 0.45 * (1 + std::cos(std::numbers::pi * part)));
  }

  /// Mean over 64 windows spread evenly over the held-out text, in float32 on both sides.
  double held_out_loss(GPT& model) const {
    const at::NoGradGuard no_grad;
    const int64_t chunks = settings.quick ? 1 : 8;
    const auto places = corpus_.held_out.size() - static_cast<size_t>(settings.context);
    double sum = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      std::vector<size_t> starts;
      for (int64_t i = 0; i < 8; ++i) {
        starts.push_back(places * static_cast<size_t>(chunk * 8 + i) /
                         static_cast<size_t>(chunks * 8));
      }
      sum += next_byte_loss(model, windows(corpus_.held_out, starts, settings.context, device_))
                 .item<double>();
    }
    return sum / static_cast<double>(chunks);
  }

  int64_t evaluate_every() const { return std::max<int64_t>(1, settings.steps / 15); }

  GPT make_model() const {
    torch::manual_seed(static_cast<uint64_t>(settings.seed));
    GPT model(GPTOptions{.context = settings.context,
                         .layers = settings.layers,
                         .width = settings.width,
                         .heads = settings.heads});
    model->to(device_);
    return model;
  }

  const std::string& held_out() const { return corpus_.held_out; }
  c10::Device device() const { return device_; }
  void synchronize() const { torchlore::synchronize(device_); }
  std::filesystem::path file(const std::string& name) const {
    return std::filesystem::path(settings.run_dir) / name;
  }

  const Settings settings;

 private:
  static c10::Device choose_device(const std::string& name) {
    const auto here = torchlore::default_device();
    if (name == "auto") return here;
    const c10::Device device(name);
    TORCH_CHECK_VALUE(device.is_cpu() || device.type() == here.type(), "--device ", name,
                      " is not there: the best device that LibTorch sees is ", here.str(),
                      "; use --device auto");
    return device.is_cpu() || device.has_index() ? device : here;
  }

  const Corpus& corpus_;
  c10::Device device_;
};

}  // namespace text
