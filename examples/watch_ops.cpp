// Watches the matrix products and convolutions of a model that knows nothing of it: which parameter
// each one uses, and how many floating-point operations it takes.
#include <torch/torch.h>

#include <iomanip>
#include <iostream>
#include <map>
#include <string>
#include <string_view>
#include <torchlore/intercept/op_mode.hpp>
#include <torchlore/intercept/parameter_index.hpp>

/// Counts the operations of each parameter's layer. A multiplication and an addition are two.
class FlopCounter : public torchlore::OpHandler {
 public:
  explicit FlopCounter(const torch::nn::Module& model) : parameters_(model) {}

  at::Tensor addmm(const at::Tensor& bias, const at::Tensor& a, const at::Tensor& b,
                   const at::Scalar& beta, const at::Scalar& alpha) override {
    auto result = OpHandler::addmm(bias, a, b, beta, alpha);
    count(b, 2 * result.numel() * a.size(-1));
    return result;
  }
  at::Tensor matmul(const at::Tensor& a, const at::Tensor& b) override {
    auto result = OpHandler::matmul(a, b);
    count(b, 2 * result.numel() * a.size(-1));
    return result;
  }
  at::Tensor bmm(const at::Tensor& a, const at::Tensor& b) override {
    auto result = OpHandler::bmm(a, b);
    count(b, 2 * result.numel() * a.size(-1));
    return result;
  }
  at::Tensor convolution(const torchlore::ConvolutionCall& call) override {
    auto result = call.run();
    const auto& spread = call.transposed ? call.input : result;  // whose elements meet the kernel
    count(call.weight, 2 * spread.numel() * (call.weight.numel() / call.weight.size(0)));
    return result;
  }
  bool changes_results() const override { return false; }

  void print(std::ostream& out) const {
    int64_t total = 0;
    for (const auto& [name, flops] : flops_) {
      out << std::left << std::setw(44) << name << std::right << std::setw(12) << flops << '\n';
      total += flops;
    }
    out << std::left << std::setw(44) << "all" << std::right << std::setw(12) << total << '\n';
  }

 private:
  void count(const at::Tensor& weight, int64_t flops) {
    const auto use = parameters_.find(weight);
    std::string name = use ? use->name() : "(no parameter)";
    if (use && !use->whole) name += " from element " + std::to_string(use->offset);
    flops_[name] += flops;
  }

  torchlore::ParameterIndex parameters_;
  std::map<std::string, int64_t> flops_;
};

/// A picture is cut into patches, which attend to each other.
struct PatchClassifier : torch::nn::Module {
  explicit PatchClassifier(int64_t width)
      : patches(register_module(
            "patches", torch::nn::Conv2d(torch::nn::Conv2dOptions(3, width, 4).stride(4)))),
        attention(register_module(
            "attention",
            torch::nn::MultiheadAttention(torch::nn::MultiheadAttentionOptions(width, 4)))),
        query(register_parameter("query", torch::randn({1, 1, width}))),
        head(register_module("head", torch::nn::Linear(width, 10))) {}

  at::Tensor forward(const at::Tensor& pictures) {
    const auto x = patches(pictures).flatten(2).permute({2, 0, 1});  // [patches, batch, width]
    const auto summary = std::get<0>(attention(query.expand({1, x.size(1), -1}), x, x));
    return head(summary[0]);
  }

  torch::nn::Conv2d patches;
  torch::nn::MultiheadAttention attention;
  at::Tensor query;
  torch::nn::Linear head;
};

int main(int argc, char** argv) {
  const bool quick = argc > 1 && std::string_view(argv[1]) == "--quick";
  PatchClassifier model(quick ? 16 : 128);
  const auto pictures = torch::randn({quick ? 2 : 32, 3, 32, 32});

  FlopCounter counter(model);
  at::Tensor logits;
  {
    const torchlore::OpMode mode(counter);
    logits = model.forward(pictures);
  }
  std::cout << "floating-point operations of one forward pass, logits " << logits.sizes() << '\n';
  counter.print(std::cout);
}
