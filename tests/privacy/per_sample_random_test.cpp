#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/instancenorm.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>
#include <torch/nn/modules/rnn.h>

#include <random>

#include "privacy/private_cases.hpp"

// Small networks put together at random from everything that the table of docs/private_gradients.md lists.
namespace torchlore {
namespace {

namespace nn = torch::nn;
using testing::PrivateCase;

/// Layers one after the other, with what they remember.
struct Network : nn::Module {
  std::vector<std::function<at::Tensor(const at::Tensor&)>> steps;
  std::string text;

  at::Tensor forward(at::Tensor x) const {
    for (const auto& step : steps) x = step(x);
    return x;
  }
};

/// Writes a network; the state of the value that it is at: [.., B, ..] with the example in `dim`.
class Writer {
 public:
  explicit Writer(uint64_t seed) : random_(seed), net_(std::make_shared<Network>()) {
    at::manual_seed(seed);
  }

  PrivateCase write() {
    examples_ = number(1, 5);
    const int64_t kind = number(0, 3);
    const auto input = kind == 0 ? rows() : kind == 1 ? series() : kind == 2 ? tokens() : image();
    const int64_t dim = dim_;
    const int64_t layers = number(1, 4);
    for (int64_t i = 0; i < layers; ++i) {
      if (sizes_.size() == 4 || kind == 3) {
        image_layer();
      } else {
        row_layer();
      }
    }
    if (number(0, 2) == 0) reuse();
    net_->to(at::kDouble);
    const auto net = net_;
    const int64_t output_dim = dim_;
    return {net->text, net, examples_, [=](int64_t from, int64_t to) {
              return testing::losses_of(net->forward(input.narrow(dim, from, to - from)),
                                        output_dim);
            }};
  }

 private:
  int64_t number(int64_t from, int64_t to) {
    return std::uniform_int_distribution<int64_t>(from, to)(random_);
  }
  bool coin() { return number(0, 1) == 1; }

  template <typename M>
  M add(M module, const std::string& name) {
    net_->register_module("m" + std::to_string(net_->steps.size()), module);
    net_->text += name + ' ';
    at::NoGradGuard no_grad;
    for (auto& p : module->parameters()) p.add_(at::randn_like(p), 0.2);
    return module;
  }

  at::Tensor parameter(at::IntArrayRef sizes, const std::string& name) {
    net_->text += name + ' ';
    return net_->register_parameter("p" + std::to_string(net_->steps.size()),
                                    at::randn(sizes, at::kDouble));
  }

  void then(std::function<at::Tensor(const at::Tensor&)> step) {
    net_->steps.push_back(std::move(step));
  }

  at::Tensor rows() {
    sizes_ = {examples_, number(1, 5)};
    return at::randn(sizes_, at::kDouble);
  }

  /// [B, T, d] or [T, B, d].
  at::Tensor series() {
    dim_ = number(0, 1);
    sizes_ = {number(2, 5), number(2, 5)};
    sizes_.insert(sizes_.begin() + dim_, examples_);
    return at::randn(sizes_, at::kDouble);
  }

  at::Tensor tokens() {
    dim_ = number(0, 1);
    const int64_t length = number(1, 5), width = 2 * number(1, 3);
    std::vector<int64_t> sizes{length};
    sizes.insert(sizes.begin() + dim_, examples_);
    auto options = nn::EmbeddingOptions(5, width);
    if (coin()) options.padding_idx(1);
    auto table = add(nn::Embedding(options), "Embedding");
    then([=](const at::Tensor& x) mutable { return table(x); });
    sizes_ = sizes;
    sizes_.push_back(width);
    return at::randint(5, sizes, at::kLong);
  }

  at::Tensor image() {
    sizes_ = {examples_, 2 * number(1, 2), number(4, 6), number(4, 6)};
    return at::randn(sizes_, at::kDouble);
  }

  void activation() {
    switch (number(0, 3)) {
      case 0:
        return then([](const at::Tensor& x) { return at::tanh(x); });
      case 1:
        return then([](const at::Tensor& x) { return at::gelu(x); });
      case 2:
        return then([](const at::Tensor& x) { return at::leaky_relu(x, 0.1); });
      default:
        return then([](const at::Tensor& x) { return at::relu(x + 0.3); });
    }
  }

  void linear() {
    const int64_t from = sizes_.back(), to = number(1, 5);
    auto layer = add(nn::Linear(nn::LinearOptions(from, to).bias(coin())), "Linear");
    then([=](const at::Tensor& x) mutable { return layer(x); });
    sizes_.back() = to;
  }

  void row_layer() {
    const int64_t d = sizes_.back();
    switch (number(0, sizes_.size() == 3 ? 9 : 6)) {
      case 0:
        linear();
        return activation();
      case 1: {
        auto norm = add(nn::LayerNorm(nn::LayerNormOptions({d})), "LayerNorm");
        return then([=](const at::Tensor& x) mutable { return norm(x); });
      }
      case 2: {
        const auto p = parameter({d}, "scale");
        return then([=](const at::Tensor& x) { return x * p; });
      }
      case 3: {
        const auto p = parameter({d}, "shift");
        return then([=](const at::Tensor& x) { return p + x.sin(); });
      }
      case 4: {
        const auto p = parameter({d, d}, "residual");
        return then([=](const at::Tensor& x) { return x + at::tanh(x.matmul(p)); });
      }
      case 5: {  // one matrix, cut into parts
        const auto p = parameter({2 * d, d}, "gated");
        return then([=](const at::Tensor& x) {
          const auto parts = p.chunk(2);
          return x.matmul(parts[0].t()) * at::sigmoid(x.matmul(parts[1].t()));
        });
      }
      case 6: {
        const auto p = parameter({d}, "rms");
        return then([=](const at::Tensor& x) { return at::rms_norm(x, {d}, p, 1e-5); });
      }
      case 7:
        return recurrent();
      case 8:
        return attention();
      default:
        return pool();
    }
  }

  void recurrent() {
    const int64_t d = sizes_.back(), h = number(1, 4);
    const bool first = dim_ == 0;
    switch (number(0, 2)) {
      case 0: {
        auto layer = add(nn::LSTM(nn::LSTMOptions(d, h).batch_first(first)), "LSTM");
        then([=](const at::Tensor& x) mutable { return std::get<0>(layer(x)); });
        break;
      }
      case 1: {
        auto layer = add(nn::GRU(nn::GRUOptions(d, h).batch_first(first)), "GRU");
        then([=](const at::Tensor& x) mutable { return std::get<0>(layer(x)); });
        break;
      }
      default: {
        auto layer = add(nn::RNN(nn::RNNOptions(d, h).batch_first(first)), "RNN");
        then([=](const at::Tensor& x) mutable { return std::get<0>(layer(x)); });
      }
    }
    sizes_.back() = h;
  }

  void attention() {
    const int64_t d = sizes_.back();
    const bool first = dim_ == 0;
    if (coin()) {
      auto layer = add(nn::MultiheadAttention(d, 1), "MultiheadAttention");
      return then([=](const at::Tensor& x) mutable {
        const auto t = first ? x.transpose(0, 1) : x;
        const auto y = std::get<0>(layer(t, t, t.cos()));
        return first ? y.transpose(0, 1) : y;
      });
    }
    const auto p = parameter({d, 3 * d}, "attention");
    then([=](const at::Tensor& x) {
      const auto t = first ? x : x.transpose(0, 1);
      const auto parts = t.matmul(p).unsqueeze(1).chunk(3, -1);
      const auto y = at::scaled_dot_product_attention(parts[0], parts[1], parts[2]).squeeze(1);
      return first ? y : y.transpose(0, 1);
    });
  }

  void pool() {
    const int64_t time = 1 - dim_;
    net_->text += "pool ";
    if (coin()) {
      then([=](const at::Tensor& x) { return x.mean(time); });
    } else {
      then([=](const at::Tensor& x) { return x.select(time, x.size(time) - 1); });
    }
    sizes_.erase(sizes_.begin() + time);
    dim_ = 0;
  }

  void image_layer() {
    const int64_t channels = sizes_[1];
    switch (number(0, 5)) {
      case 0:
      case 1: {
        const int64_t groups = coin() ? 1 : 2, to = 2 * number(1, 2);
        auto options = nn::Conv2dOptions(channels, to, {number(1, 3), number(1, 3)})
                           .groups(groups)
                           .bias(coin())
                           .stride(number(1, 2))
                           .padding(1);
        if (coin()) options.padding_mode(torch::kCircular);
        auto layer = add(nn::Conv2d(options), "Conv2d");
        then([=](const at::Tensor& x) mutable { return layer(x); });
        sizes_[1] = to;
        return activation();
      }
      case 2: {
        auto layer = add(nn::ConvTranspose2d(nn::ConvTranspose2dOptions(channels, 2, 2).stride(2)),
                         "ConvTranspose2d");
        then([=](const at::Tensor& x) mutable { return layer(x); });
        sizes_[1] = 2;
        return;
      }
      case 3: {
        auto norm = add(nn::GroupNorm(2, channels), "GroupNorm");
        return then([=](const at::Tensor& x) mutable { return norm(x); });
      }
      case 4: {
        auto slope = add(nn::PReLU(nn::PReLUOptions().num_parameters(channels)), "PReLU");
        return then([=](const at::Tensor& x) mutable { return slope(x); });
      }
      default: {
        const auto p = parameter({channels, 1, 1}, "gain");
        return then([=](const at::Tensor& x) { return x * p - p; });
      }
    }
  }

  /// Some layer once more where it fits, or a linear layer on top that is used twice.
  void reuse() {
    const int64_t d = sizes_.back();
    if (sizes_.size() == 4) return;
    auto layer = add(nn::Linear(d, d), "twice");
    then([=](const at::Tensor& x) mutable { return layer(at::tanh(layer(x))) + x; });
  }

  std::mt19937_64 random_;
  std::shared_ptr<Network> net_;
  int64_t examples_ = 0;
  int64_t dim_ = 0;
  std::vector<int64_t> sizes_;
};

TEST(PerSampleRandom, FiveHundredNetworksEqualTheLoop) {
  at::set_num_threads(1);  // thousands of tiny ops
  int64_t with_parameters = 0;
  for (uint64_t seed = 0; seed < 500; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    const auto network = Writer(seed).write();
    if (network.model->parameters().empty()) continue;  // poolings only
    ++with_parameters;
    SCOPED_TRACE(network.name);
    testing::expect_equal_to_loop(network);
    if (HasFailure()) break;
  }
  EXPECT_GT(with_parameters, 480);
}

}  // namespace
}  // namespace torchlore
