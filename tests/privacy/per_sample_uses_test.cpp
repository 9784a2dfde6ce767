#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/nn/functional/activation.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>
#include <torch/nn/modules/rnn.h>
#include <torch/nn/modules/transformerlayer.h>

#include <set>

#include "../../src/privacy/per_sample_pass.hpp"
#include "privacy/private_cases.hpp"
#include "support/message.hpp"
#include "torchlore/privacy/per_sample.hpp"

// Parameters that are used in other ways than by one layer once.
namespace torchlore {
namespace {

namespace nn = torch::nn;
using testing::Case;
using testing::case_name;
using testing::random_input;

/// A module of parameters (and of linear layers 0, 1, … from width to width) with any forward.
struct Free : nn::Module {
  std::vector<at::Tensor> p;
  std::vector<nn::Linear> layers;
  std::vector<nn::Embedding> tables;

  at::Tensor parameter(at::IntArrayRef sizes) {
    p.push_back(register_parameter("p" + std::to_string(p.size()), at::randn(sizes)));
    return p.back();
  }
};

using FreeForward = std::function<at::Tensor(Free&, const at::Tensor&)>;

/// Parameters of these shapes, as `m.p`.
Case free_case(std::string name, std::vector<std::vector<int64_t>> shapes, const at::Tensor& input,
               int64_t dim, int64_t output_dim, FreeForward forward) {
  const auto make = [=] {
    auto module = std::make_shared<Free>();
    for (const auto& shape : shapes) module->parameter(shape);
    return module;
  };
  return {std::move(name), make, input, dim, output_dim, [=](nn::Module& m, const at::Tensor& x) {
            return forward(dynamic_cast<Free&>(m), x);
          }};
}

class PerSampleUses : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override { at::set_num_threads(1); }  // thousands of tiny ops
};

TEST_P(PerSampleUses, AreThoseOfALoopInDouble) {
  testing::expect_equal_to_loop(built(GetParam(), at::kDouble));
}
TEST_P(PerSampleUses, AreThoseOfALoopInFloat) {
  testing::expect_equal_to_loop(built(GetParam(), at::kFloat));
}

/// One by one is exact but slow: only what is listed here may come to that.
TEST_P(PerSampleUses, AreServedByRules) {
  const std::set<std::string> others{"UnknownToRules", "WeightNorm", "LowRank",    "Masked",
                                     "Positive",       "Joined",     "Regularized"};
  const auto c = built(GetParam(), at::kFloat);
  detail::PerSamplePass pass(c.losses(0, c.examples), detail::trainable_parameters(*c.model), {},
                             detail::PassPurpose::norms);
  bool is_exact = false;
  for (size_t i = 0; i < pass.size(); ++i) is_exact = is_exact || pass.is_exact(i);
  EXPECT_EQ(is_exact, others.contains(c.name));
}

std::vector<Case> direct_cases() {
  const auto x = random_input({4, 5, 3});
  const auto row = random_input({4, 3});
  return {
      free_case("Add", {{3}}, x, 0, 0, [](Free& m, auto& t) { return t + m.p[0]; }),
      free_case("AddInFront", {{5, 1}}, x, 0, 0, [](Free& m, auto& t) { return m.p[0] + t; }),
      free_case("AddScaled", {{3}}, x, 0, 0,
                [](Free& m, auto& t) { return at::add(t, m.p[0], 0.3); }),
      free_case("Sub", {{3}, {5, 3}}, x, 0, 0,
                [](Free& m, auto& t) { return m.p[1] - at::sub(t, m.p[0], 2); }),
      free_case("Mul", {{3}, {1}}, x, 0, 0, [](Free& m, auto& t) { return m.p[1] * (t * m.p[0]); }),
      free_case("MulBatchSecond", {{4, 1, 3}}, random_input({4, 6, 3}), 1, 1,
                [](Free& m, auto& t) { return t * m.p[0]; }),
      free_case("MulScalar", {{}}, row, 0, 0, [](Free& m, auto& t) { return t * m.p[0]; }),
      free_case("Div", {{3}, {3}}, x, 0, 0,
                [](Free& m, auto& t) { return m.p[1] / (t.square() + 1) / m.p[0]; }),
      free_case("RmsNormByHand", {{3}}, x, 0, 0,
                [](Free& m, auto& t) {
                  return t * at::rsqrt(t.square().mean(-1, true) + 1e-5) * m.p[0];
                }),
      free_case("RmsNorm", {{3}}, x, 0, 0,
                [](Free& m, auto& t) { return at::rms_norm(t, {3}, m.p[0], 1e-5); }),
      free_case("PReLU", {{5}}, x, 0, 0, [](Free& m, auto& t) { return at::prelu(t, m.p[0]); }),
      free_case("Mm", {{3, 2}}, row, 0, 0, [](Free& m, auto& t) { return t.mm(m.p[0]); }),
      free_case("MmLeft", {{2, 3}}, row, 0, 1, [](Free& m, auto& t) { return m.p[0].mm(t.t()); }),
      free_case("Addmm", {{3, 2}, {2}}, row, 0, 0,
                [](Free& m, auto& t) { return at::addmm(m.p[1], t, m.p[0], 0.5, 1.5); }),
      free_case("AddmmLeft", {{2, 3}, {2, 1}}, row, 0, 1,
                [](Free& m, auto& t) { return at::addmm(m.p[1], m.p[0], t.t(), 2, 0.5); }),
      free_case("Mv", {{3}}, row, 0, 0, [](Free& m, auto& t) { return t.mv(m.p[0]).unsqueeze(1); }),
      free_case("Addmv", {{3}, {1}}, row, 0, 0,
                [](Free& m, auto& t) { return at::addmv(m.p[1], t, m.p[0], 2, 3).unsqueeze(1); }),
      free_case("MatmulVector", {{3}}, x, 0, 0, [](Free& m, auto& t) { return t.matmul(m.p[0]); }),
      free_case("MatmulBatched", {{5, 3, 2}}, x, 0, 0,
                [](Free& m, auto& t) { return t.unsqueeze(2).matmul(m.p[0]); }),
      free_case("Bmm", {{5, 3, 2}}, random_input({5, 4, 3}), 1, 1,
                [](Free& m, auto& t) { return t.bmm(m.p[0]); }),
      free_case("BmmLeft", {{5, 2, 3}}, random_input({5, 3, 4}), 2, 2,
                [](Free& m, auto& t) { return m.p[0].bmm(t); }),
      free_case("Baddbmm", {{5, 3, 2}, {5, 1, 2}}, random_input({5, 4, 3}), 1, 1,
                [](Free& m, auto& t) { return at::baddbmm(m.p[1], t, m.p[0], 0.5, 2); }),
      free_case("ExpandThenBmm", {{3, 2}}, x, 0, 0,
                [](Free& m, auto& t) {
                  return t.bmm(m.p[0].expand({t.size(0), 3, 2}));
                }),
      free_case("LeftMatmul", {{2, 5}}, x, 0, 0, [](Free& m, auto& t) { return m.p[0].matmul(t); }),
      free_case("ClassToken", {{1, 1, 3}}, x, 0, 0,
                [](Free& m, auto& t) {
                  return at::cat({m.p[0].expand({t.size(0), 1, 3}), t}, 1) * t.sum(1, true);
                }),
      free_case("Repeat", {{2, 3}}, random_input({4, 6, 3}), 0, 0,
                [](Free& m, auto& t) {
                  return t * m.p[0].repeat({t.size(0), 3, 1});
                }),
      free_case("PositionSlice", {{9, 3}}, x, 0, 0,
                [](Free& m, auto& t) { return t + m.p[0].slice(0, 1, 6); }),
      free_case("Bilinear", {{2, 3, 3}}, row, 0, 0,
                [](Free& m, auto& t) { return at::bilinear(t, t.sin(), m.p[0]); }),
      free_case("Einsum", {{3, 2, 4}}, x, 0, 0,
                [](Free& m, auto& t) {
                  return at::einsum("btd,dhe->bthe", {t, m.p[0]});
                }),
      free_case("UnknownToRules", {{3}}, x, 0, 0,
                [](Free& m, auto& t) { return at::maximum(t, m.p[0]); }),
  };
}
INSTANTIATE_TEST_SUITE_P(Direct, PerSampleUses, ::testing::ValuesIn(direct_cases()), case_name);

std::vector<Case> path_cases() {
  const auto x = random_input({4, 5, 3});
  const auto row = random_input({4, 3});
  return {
      free_case("Chunks", {{9, 3}}, x, 0, 0,
                [](Free& m, auto& t) {
                  const auto parts = m.p[0].chunk(3);
                  return t.matmul(parts[0].t()) * t.matmul(parts[1].t()) + t.matmul(parts[2].t());
                }),
      free_case("OneChunkOnly", {{9, 3}}, x, 0, 0,
                [](Free& m, auto& t) { return t.matmul(m.p[0].chunk(3)[1].t()); }),
      free_case("SplitWithSizes", {{9, 3}}, row, 0, 0,
                [](Free& m, auto& t) {
                  return t.mm(m.p[0].split_with_sizes({2, 7})[1].t());
                }),
      free_case("Unbind", {{2, 4, 3}}, row, 0, 0,
                [](Free& m, auto& t) { return t.mm(m.p[0].unbind()[1].t()); }),
      free_case("SelectAndSlice", {{4, 2, 6}}, row, 0, 0,
                [](Free& m, auto& t) { return t.mm(m.p[0].select(1, 1).slice(1, 0, 6, 2).t()); }),
      free_case("PermuteAndView", {{3, 2, 4}}, row, 0, 0,
                [](Free& m, auto& t) {
                  return t.mm(m.p[0].permute({1, 0, 2}).reshape({2, 3, 4}).select(0, -1));
                }),
      free_case("LastTokenOfAFittingLength", {{3, 2}}, x, 0, 0,  // rows 5e + 4: as if [T, B]
                [](Free& m, auto& t) { return t.matmul(m.p[0]).select(1, 4); }),
      free_case("ExpandedWeight", {{3, 1}}, row, 0, 0,
                [](Free& m, auto& t) {
                  return t.mm(m.p[0].expand({3, 4}));
                }),
      free_case("CastWeight", {{3, 2}}, row, 0, 0,
                [](Free& m, auto& t) { return t.to(at::kDouble).mm(m.p[0].to(at::kDouble)); }),
      free_case("Squeeze", {{1, 3, 1, 2}}, row, 0, 0,
                [](Free& m, auto& t) { return t.mm(m.p[0].squeeze(0).squeeze()); }),
  };
}
INSTANTIATE_TEST_SUITE_P(Paths, PerSampleUses, ::testing::ValuesIn(path_cases()), case_name);

std::vector<Case> tied_cases() {
  const auto row = random_input({4, 3});
  const auto tokens =
      at::tensor(std::vector<int64_t>{1, 3, 1, 0, 4, 2, 2, 2, 2, 0, 1, 1}).view({4, 3});
  return {
      free_case("LinearTwice", {{3, 3}, {3}}, row, 0, 0,
                [](Free& m, auto& t) {
                  return at::linear(at::linear(t, m.p[0], m.p[1]).tanh(), m.p[0], m.p[1]);
                }),
      free_case("LinearInTwoRanks", {{3, 3}}, random_input({4, 5, 3}), 0, 0,
                [](Free& m, auto& t) {
                  return at::linear(at::linear(t, m.p[0]).tanh().mean(1), m.p[0]);
                }),
      free_case("BothSides", {{3, 3}}, row, 0, 0,
                [](Free& m, auto& t) { return t.mm(m.p[0]).mm(m.p[0].t()); }),
      free_case(
          "EmbeddingAndHead", {{6, 3}}, tokens, 0, 0,
          [](Free& m, auto& t) { return at::embedding(m.p[0], t).tanh().matmul(m.p[0].t()); }),
      free_case("TwoEmbeddings", {{6, 3}}, tokens, 0, 0,
                [](Free& m, auto& t) {
                  return at::embedding(m.p[0], t) * at::embedding(m.p[0], 5 - t, 4);
                }),
      free_case("ConvolutionTwice", {{2, 2, 3}, {2}}, random_input({4, 2, 6}), 0, 0,
                [](Free& m, auto& t) {
                  return at::conv1d(at::conv1d(t, m.p[0], m.p[1], 1, 1).tanh(), m.p[0], m.p[1]);
                }),
      free_case(
          "ScaleOften", {{3}}, row, 0, 0,
          [](Free& m, auto& t) { return t / m.p[0] - ((t * m.p[0]).tanh() * m.p[0] + m.p[0]); }),
  };
}
INSTANTIATE_TEST_SUITE_P(Tied, PerSampleUses, ::testing::ValuesIn(tied_cases()), case_name);

/// Parameters that are computed with before an example meets them.
std::vector<Case> derived_cases() {
  const auto row = random_input({4, 3});
  return {
      free_case("WeightNorm", {{3, 1}, {3, 3}}, row, 0, 0,
                [](Free& m, auto& t) { return t.mm(at::_weight_norm(m.p[1], m.p[0], 0).t()); }),
      free_case("LowRank", {{3, 2}, {2, 3}}, row, 0, 0,
                [](Free& m, auto& t) { return t.mm(m.p[0].mm(m.p[1])) + t; }),
      free_case(
          "Masked", {{3, 3}}, row, 0, 0,
          [](Free& m, auto& t) { return t.mm(m.p[0] * at::ones_like(m.p[0]).tril()).tanh(); }),
      free_case("Positive", {{3}}, row, 0, 0,
                [](Free& m, auto& t) { return t * at::softplus(m.p[0]); }),
      free_case("Joined", {{2, 3}, {1, 3}}, row, 0, 0,
                [](Free& m, auto& t) {
                  return t.mm(at::cat({m.p[0], m.p[1]}).t());
                }),
      free_case("Regularized", {{3, 3}}, row, 0, 0,
                [](Free& m, auto& t) { return t.mm(m.p[0]) + m.p[0].square().sum(); }),
  };
}
INSTANTIATE_TEST_SUITE_P(Derived, PerSampleUses, ::testing::ValuesIn(derived_cases()), case_name);

/// A recurrent layer or stack; its first output.
template <typename M, typename Options>
Case recurrent(std::string name, const Options& options, const at::Tensor& input, int64_t dim) {
  using Impl = typename M::ContainedType;
  return {std::move(name),
          [=] { return M(options).ptr(); },
          input,
          dim,
          dim,
          [](nn::Module& m, const at::Tensor& x) {
            return std::get<0>(dynamic_cast<Impl&>(m).forward(x));
          }};
}

std::vector<Case> recurrent_cases() {
  const auto series = random_input({5, 3, 4});
  return {
      recurrent<nn::LSTM>("Lstm", nn::LSTMOptions(4, 3), series, 1),
      recurrent<nn::LSTM>("LstmBatchFirst", nn::LSTMOptions(4, 3).batch_first(true), series, 0),
      recurrent<nn::LSTM>("LstmStack",
                          nn::LSTMOptions(4, 3).num_layers(2).bidirectional(true).bias(false),
                          series, 1),
      recurrent<nn::LSTM>("LstmProjected", nn::LSTMOptions(4, 3).proj_size(2), series, 1),
      recurrent<nn::GRU>("Gru", nn::GRUOptions(4, 3), series, 1),
      recurrent<nn::GRU>("GruStack", nn::GRUOptions(4, 3).num_layers(2).bidirectional(true), series,
                         1),
      recurrent<nn::RNN>("Rnn", nn::RNNOptions(4, 3), series, 1),
      {"LstmLastState", [] { return nn::LSTM(4, 3).ptr(); }, series, 1, 0,
       [](nn::Module& m, const at::Tensor& x) {
         const auto state = std::get<1>(dynamic_cast<nn::LSTMImpl&>(m).forward(x));
         return at::cat({std::get<0>(state)[0], std::get<1>(state)[0]}, 1);
       }},
      {"LstmCell", [] { return nn::LSTMCell(4, 3).ptr(); }, series, 1, 0,
       [](nn::Module& m, const at::Tensor& x) {
         auto& cell = dynamic_cast<nn::LSTMCellImpl&>(m);
         auto state = cell.forward(x[0]);
         for (int64_t t = 1; t < x.size(0); ++t) state = cell.forward(x[t], state);
         return std::get<0>(state);
       }},
      {"GruCell", [] { return nn::GRUCell(4, 3).ptr(); }, series, 1, 0,
       [](nn::Module& m, const at::Tensor& x) {
         auto& cell = dynamic_cast<nn::GRUCellImpl&>(m);
         return cell.forward(x[1], cell.forward(x[0]));
       }},
  };
}
INSTANTIATE_TEST_SUITE_P(Recurrent, PerSampleUses, ::testing::ValuesIn(recurrent_cases()),
                         case_name);

std::vector<Case> attention_cases() {
  const auto x = random_input({5, 3, 4});
  const auto attention = [](std::string name, const at::Tensor& input, auto forward) {
    return Case{std::move(name),
                [] { return nn::MultiheadAttention(4, 2).ptr(); },
                input,
                1,
                1,
                [=](nn::Module& m, const at::Tensor& t) {
                  return std::get<0>(forward(dynamic_cast<nn::MultiheadAttentionImpl&>(m), t));
                }};
  };
  return {
      attention("SelfAttention", x, [](auto& m, auto& t) { return m.forward(t, t, t); }),
      attention("EncoderDecoderAttention", x,
                [](auto& m, auto& t) {
                  const auto memory = t.slice(0, 0, 4).cos();
                  return m.forward(t, memory, memory);
                }),
      attention("ThreeInputs", x, [](auto& m, auto& t) { return m.forward(t, t.sin(), t.cos()); }),
      {"AttentionWithBiases",
       [] {
         return nn::MultiheadAttention(
                    nn::MultiheadAttentionOptions(4, 2).add_bias_kv(true).kdim(3).vdim(3))
             .ptr();
       },
       x, 1, 1,
       [](nn::Module& m, const at::Tensor& t) {
         return std::get<0>(dynamic_cast<nn::MultiheadAttentionImpl&>(m).forward(
             t, t.slice(2, 0, 3), t.slice(2, 1, 4)));
       }},
      {"EncoderLayer",
       [] {
         return nn::TransformerEncoderLayer(
                    nn::TransformerEncoderLayerOptions(4, 2).dim_feedforward(5).dropout(0))
             .ptr();
       },
       x, 1, 1,
       [](nn::Module& m, const at::Tensor& t) {
         return dynamic_cast<nn::TransformerEncoderLayerImpl&>(m).forward(t);
       }},
      {"DecoderLayer",
       [] {
         return nn::TransformerDecoderLayer(
                    nn::TransformerDecoderLayerOptions(4, 2).dim_feedforward(5).dropout(0))
             .ptr();
       },
       x, 1, 1,
       [](nn::Module& m, const at::Tensor& t) {
         return dynamic_cast<nn::TransformerDecoderLayerImpl&>(m).forward(t, t.sin());
       }},
      free_case("FusedAttention", {{4, 12}}, random_input({3, 5, 4}), 0, 0,
                [](Free& m, auto& t) {
                  const auto qkv =
                      t.matmul(m.p[0]).view({t.size(0), 5, 3, 2, 2}).permute({2, 0, 3, 1, 4});
                  return at::scaled_dot_product_attention(qkv[0], qkv[1], qkv[2]);
                }),
  };
}
INSTANTIATE_TEST_SUITE_P(Attention, PerSampleUses, ::testing::ValuesIn(attention_cases()),
                         case_name);

TEST(PerSampleMixing, IsFoundBehindParametersOfAnyKind) {
  Free m;
  const auto p = m.parameter({3, 3}), q = m.parameter({3});
  const auto x = at::randn({4, 3});
  const auto refused = [&](const at::Tensor& losses) {
    const auto text =
        testing::message_of<c10::NotImplementedError>([&] { per_sample_norms(losses, m); });
    EXPECT_NE(text.find("the examples cannot be told apart"), std::string::npos) << text;
  };
  const auto centered = [](const at::Tensor& h) { return (h - h.mean(0, true)).square().sum(1); };
  refused(centered(x.mm(p)));
  refused(centered(x * q));
  refused(centered(x.mm(p * at::ones({3, 3}))));
  refused(centered(x.mm(p.mm(p))));
  refused(centered(x + q.expand({4, 3})));
  refused(x.mm(p).softmax(0).sum(1));
  refused((x.mm(p) * x.mm(p).flip(0)).sum(1));
  refused((x * q).cumsum(0).sum(1));
  refused((x.mm(p).sum() + x.sum(1)));
}

}  // namespace
}  // namespace torchlore
