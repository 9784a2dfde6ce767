#pragma once

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "../../bench/claims/models/fashion_mnist.hpp"
#include "torchlore/privacy/calibrate_noise.hpp"
#include "torchlore/privacy/dp_aggregator.hpp"

/// 100 clients who each know two kinds of clothes train a linear classifier of small images together.
namespace federated {

namespace tl = torchlore;

constexpr int64_t kPixels = 49;    // images averaged to 7x7: every weight costs noise
constexpr double kDelta = 1e-3;    // below 1 / clients
constexpr double kClipNorm = 0.5;  // chosen beforehand: observed norms would tell about the clients
constexpr double kLocalRate = 0.1;
constexpr int64_t kLocalBatch = 50;

struct Settings {
  int64_t clients = 100;
  int64_t rounds = 10;
  int64_t train = 60'000;
  int64_t test = 10'000;
  uint64_t seed = 1;  ///< of the data's division and the clients' batches
};

struct Data {
  at::Tensor x;  // [N, 49]
  at::Tensor y;  // [N]
};

struct Task {
  std::vector<Data> clients;
  Data test;
};

/// Two of 10 classes for most clients: sorted by label, cut in two pieces per client, pieces shuffled.
inline std::vector<Data> deal_out(const Data& all, int64_t clients) {
  const auto order = all.y.argsort();
  const auto pieces = at::randperm(2 * clients);
  const int64_t size = all.y.size(0) / (2 * clients);
  std::vector<Data> result;
  for (int64_t c = 0; c < clients; ++c) {
    const auto piece = [&](int64_t i) {
      return order.narrow(0, pieces[i].item<int64_t>() * size, size);
    };
    const auto chosen = at::cat({piece(2 * c), piece(2 * c + 1)});
    result.push_back({all.x.index_select(0, chosen), all.y.index_select(0, chosen)});
  }
  return result;
}

inline Data small_images(const tl::models::Images& images) {
  return {at::avg_pool2d(images.x, {4, 4}).flatten(1), images.y};
}

/// Stands in where the data set is not installed: ten blurred points.
inline Data blurred_points(int64_t count, const at::Tensor& centres) {
  const auto y = at::randint(10, {count});
  return {centres.index_select(0, y) + 2 * at::randn({count, kPixels}), y};
}

/// Fashion-MNIST dealt out to the clients; nothing if it is not installed.
inline std::optional<Task> load(const Settings& settings) {
  at::manual_seed(settings.seed);
  const auto data = tl::models::load_fashion_mnist(settings.train, settings.test);
  if (!data) return std::nullopt;
  return Task{deal_out(small_images(data->train), settings.clients), small_images(data->test)};
}

inline Task made_up(const Settings& settings) {
  at::manual_seed(settings.seed);
  const auto centres = at::randn({10, kPixels});
  return {deal_out(blurred_points(settings.train, centres), settings.clients),
          blurred_points(settings.test, centres)};
}

/// One pass over a client's data from the global weights; returns what changed.
inline tl::StateDict local_update(const Data& data, const torch::nn::Linear& global) {
  torch::nn::Linear local(kPixels, 10);
  const at::NoGradGuard no_grad;
  local->weight.copy_(global->weight);
  local->bias.copy_(global->bias);
  torch::optim::SGD optimizer(local->parameters(), kLocalRate);
  const auto order = at::randperm(data.y.size(0));
  for (const auto& batch : order.split(kLocalBatch)) {
    const at::AutoGradMode grad(true);
    optimizer.zero_grad();
    const auto logits = local->forward(data.x.index_select(0, batch));
    torch::nn::functional::cross_entropy(logits, data.y.index_select(0, batch)).backward();
    optimizer.step();
  }
  return {{"weight", local->weight - global->weight}, {"bias", local->bias - global->bias}};
}

/// The noise multiplier for an epsilon; 0 for infinity.
inline double noise_for(double epsilon, int64_t rounds) {
  if (!std::isfinite(epsilon)) return 0;
  return tl::calibrate_noise({.epsilon = epsilon, .delta = kDelta, .steps = rounds});
}

inline tl::DpAggregator make_aggregator(double noise_multiplier, int64_t clients) {
  const tl::StateDict like = {{"weight", at::zeros({10, kPixels})}, {"bias", at::zeros({10})}};
  return {like,
          {.clip_norm = kClipNorm,
           .noise_multiplier = noise_multiplier,
           .expected_clients = static_cast<double>(clients)}};
}

/// Trains with what the aggregator gives; returns the accuracy on the test images in percent.
inline double train(const Task& task, tl::DpAggregator& aggregator, const Settings& settings) {
  at::manual_seed(settings.seed);
  torch::nn::Linear model(kPixels, 10);
  const at::NoGradGuard no_grad;
  model->weight.zero_();
  model->bias.zero_();
  for (int64_t r = 0; r < settings.rounds; ++r) {
    aggregator.start_round();
    for (size_t c = 0; c < task.clients.size(); ++c) {
      aggregator.add("client " + std::to_string(c), local_update(task.clients[c], model));
    }
    const auto round = aggregator.finish_round();
    model->weight += round.mean.at("weight");
    model->bias += round.mean.at("bias");
  }
  const auto right = model->forward(task.test.x).argmax(1) == task.test.y;
  return 100 * right.to(at::kDouble).mean().item<double>();
}

}  // namespace federated
