#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <utility>

#include "row_products.hpp"

// A whole LSTM layer in one op (oneDNN's, in float32 on the CPU; all other recurrent layers are built of ops
// that have rules). Its gates are worked out again from what it saved, and backward goes through them once more,
// which gives the gradient by the gates of every step: the rest is products of rows.
namespace torchlore::detail {
namespace {

/// What one step does with its gates [B, 4·H], in LibTorch's order.
struct Gates {
  at::Tensor in, forget, cell, out;

  explicit Gates(const at::Tensor& sums) {
    const auto parts = sums.chunk(4, 1);
    in = parts[0].sigmoid();
    forget = parts[1].sigmoid();
    cell = parts[2].tanh();
    out = parts[3].sigmoid();
  }
};

at::Tensor through_sigmoid(const at::Tensor& gradient, const at::Tensor& result) {
  return at::sigmoid_backward(gradient, result);
}

class LstmLayerRule : public RowProductRule {
 public:
  explicit LstmLayerRule(RuleSite site) : RowProductRule(std::move(site)) {
    const auto& node = *site_.node;
    is_reversed_ = node.attribute<bool>("reverse");
    x_ = in_order(node.saved_tensor("input"));  // [T, B, d]
    output_ = in_order(node.saved_tensor("output"));
    const int64_t hidden = output_.size(2);
    h0_ = node.saved_tensor("hx").reshape({-1, hidden});
    c0_ = node.saved_tensor("cx").reshape({-1, hidden});
    w_x_ = node.saved_tensor("weight0");
    w_h_ = node.saved_tensor("weight1");
    bias_ = node.attribute<bool>("has_biases")
                ? node.saved_tensor("weight2") + node.saved_tensor("weight3")
                : at::zeros({1}, x_.options());
  }

  int64_t output_count() const override { return 3; }

  void take_outputs(const std::vector<at::Tensor>& gradients) override {
    const auto h_before = at::cat({h0_.unsqueeze(0), output_.narrow(0, 0, x_.size(0) - 1)});
    const auto g =
        gates_gradients(h_before, gradients).transpose(0, 1).contiguous();  // [B, T, 4·H]
    const auto x = x_.transpose(0, 1), h = h_before.transpose(0, 1);
    for (const auto& slot : site_.slots) {
      if (slot.input == "weight0") {
        products_.push_back({x, g});
      } else if (slot.input == "weight1") {
        products_.push_back({h, g});
      } else {
        products_.push_back({{}, g});
      }
    }
  }

 private:
  at::Tensor in_order(const at::Tensor& series) const {
    return is_reversed_ ? series.flip(0) : series;
  }

  /// The gradient by the sums that go into the gates, of every step: [T, B, 4·H].
  at::Tensor gates_gradients(const at::Tensor& h_before, const std::vector<at::Tensor>& by) const {
    const auto sums = x_.matmul(w_x_.t()) + h_before.matmul(w_h_.t()) + bias_;
    std::vector<at::Tensor> cells{c0_};
    for (int64_t t = 0; t < sums.size(0); ++t) {
      const Gates gates(sums[t]);
      cells.push_back(gates.forget * cells.back() + gates.in * gates.cell);
    }
    const auto by_output = by[0].defined() ? in_order(by[0]) : at::zeros_like(output_);
    auto by_h = by[1].defined() ? by[1].reshape(h0_.sizes()) : at::zeros_like(h0_);
    auto by_c = by[2].defined() ? by[2].reshape(c0_.sizes()) : at::zeros_like(c0_);
    std::vector<at::Tensor> result(static_cast<size_t>(sums.size(0)));
    for (int64_t t = sums.size(0) - 1; t >= 0; --t) {
      const auto at = static_cast<size_t>(t);
      const Gates gates(sums[t]);
      const auto shown = cells[at + 1].tanh();
      by_h = by_h + by_output[t];
      by_c = by_c + at::tanh_backward(by_h * gates.out, shown);
      result[at] = at::cat({through_sigmoid(by_c * gates.cell, gates.in),
                            through_sigmoid(by_c * cells[at], gates.forget),
                            at::tanh_backward(by_c * gates.in, gates.cell),
                            through_sigmoid(by_h * shown, gates.out)},
                           1);
      by_c = by_c * gates.forget;
      by_h = result[at].mm(w_h_);
    }
    return at::stack(result);
  }

  bool is_reversed_ = false;
  at::Tensor x_, output_, h0_, c0_, w_x_, w_h_, bias_;
};

/// x₁ᵀ W x₂ for every row and output: `Bilinear`.
class BilinearRule : public RowProductRule {
 public:
  using RowProductRule::RowProductRule;

  void take(const at::Tensor& gradient) override {
    const auto by_example = [&](const at::Tensor& rows) {
      return example_first(rows, site_.layout);
    };
    const auto left = by_example(site_.node->saved_tensor("i1"));
    const auto g = by_example(gradient).unsqueeze(3) * left.unsqueeze(2);  // [B, T, outputs, n]
    products_ = {{by_example(site_.node->saved_tensor("i3")), g.flatten(2)}};
  }
};

bool is_bilinear(const TapeNode& node) {
  using Ints = std::vector<int64_t>;
  return node.attribute<Ints>("expand1") == Ints{1, 3} &&
         node.attribute<Ints>("expand2") == Ints{0} &&
         node.attribute<Ints>("expand3") == Ints{1, 2} &&
         node.attribute<Ints>("sumdim") == Ints{2, 3};
}

}  // namespace

std::unique_ptr<LayerRule> make_recurrent_rule(const RuleSite& site) {
  const auto& node = *site.node;
  if (node.name != "MkldnnRnnLayerBackward0" || node.attribute<int64_t>("mode") != 2)
    return nullptr;
  const auto input = node.saved_tensor("input");  // [T, B, d]
  const auto& sizes = node.attribute<std::vector<int64_t>>("batch_sizes");
  const bool is_padded = sizes.empty() && input.defined() && input.dim() == 3;
  // The layout may be that of a state [.., B, H], where no output has a gradient.
  if (!is_padded || site.layout.examples != input.size(1) || site.layout.per_example() != 1) {
    return nullptr;
  }
  for (const auto& slot : site.slots) {
    if (!slot.input.starts_with("weight")) return nullptr;
  }
  return std::make_unique<LstmLayerRule>(site);
}

std::unique_ptr<LayerRule> make_bilinear_rule(const RuleSite& site) {
  const auto& node = *site.node;
  if (node.op != TapeOp::trilinear || !is_bilinear(node) || site.layout.dim != 0) return nullptr;
  const bool is_weight = site.slots.size() == 1 && site.slots[0].input == "i2";
  if (!is_weight || !node.saved_tensor("i1").defined() || !node.saved_tensor("i3").defined()) {
    return nullptr;
  }
  return std::make_unique<BilinearRule>(site);
}

}  // namespace torchlore::detail
