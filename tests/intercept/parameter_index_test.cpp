#include "torchlore/intercept/parameter_index.hpp"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/rnn.h>

#include <map>
#include <random>
#include <string>
#include <vector>

#include "support/message.hpp"
#include "torchlore/intercept/op_call.hpp"
#include "torchlore/intercept/op_mode.hpp"
#include "torchlore/precision/autocast.hpp"

namespace torchlore {
namespace {

using testing::message_of;

at::Tensor parameter(at::IntArrayRef sizes) { return at::randn(sizes).requires_grad_(true); }

/// "name[offset+extent]", "name" if whole, "copy of name" and so on, "" if it is none.
std::string text(const std::optional<ParameterUse>& use) {
  if (!use) return "";
  std::string result = use->copy ? "copy of " : "";
  for (size_t i = 0; i < use->names.size(); ++i) result += (i > 0 ? "=" : "") + use->names[i];
  if (use->whole) {
    EXPECT_EQ(use->offset, 0);
    return result;
  }
  return result + "[" + std::to_string(use->offset) + "+" + std::to_string(use->extent) + "]";
}

struct Net : torch::nn::Module {
  torch::nn::Linear fc{register_module("fc", torch::nn::Linear(4, 3))};
  torch::nn::BatchNorm1d norm{register_module("norm", torch::nn::BatchNorm1d(3))};
  at::Tensor tied{register_parameter("tied", fc->weight)};
};

TEST(ParameterIndex, KnowsParametersThroughViewsOfThem) {
  const Net net;
  const ParameterIndex index(net);
  const auto& w = net.fc->weight;
  const auto find = [&](const at::Tensor& t) { return text(index.find(t)); };
  EXPECT_EQ(index.size(), 4U);
  EXPECT_EQ(find(net.fc->bias), "fc.bias");
  EXPECT_EQ(find(net.norm->weight), "norm.weight");
  for (const auto& whole : {w, w.t(), w.detach(), w.data(), w.view({2, 6}), w.unsqueeze(0),
                            w.expand({7, 3, 4}), w.unflatten(1, {2, 2}).permute({2, 0, 1})}) {
    EXPECT_EQ(find(whole), "tied=fc.weight") << whole.sizes();
  }
  EXPECT_EQ(find(net.fc->bias.expand({5, 3})), "fc.bias");
  EXPECT_EQ(find(w[1]), "tied=fc.weight[4+4]");
  EXPECT_EQ(find(w.narrow(1, 1, 2)), "tied=fc.weight[1+10]");
  EXPECT_EQ(find(w.t()[3]), "tied=fc.weight[3+9]");
  EXPECT_TRUE(index.find(w.t())->parameter.is_same(w));
  EXPECT_EQ(index.find(w)->extent, 12);
  EXPECT_EQ(index.find(w.t())->name(), "tied");
}

TEST(ParameterIndex, KnowsNothingElse) {
  const Net net;
  const ParameterIndex index(net);
  const auto& w = net.fc->weight;
  for (const auto& other : {at::randn({3, 4}), w * 1, w + w, w.clone().detach(), at::Tensor(),
                            w.narrow(0, 0, 0), net.norm->running_mean, w.to_sparse(), w.relu()}) {
    EXPECT_FALSE(index.find(other));
  }
}

TEST(ParameterIndex, ListsBuffersOnRequest) {
  const Net net;
  const ParameterIndex index(net, {.buffers = true});
  const auto use = index.find(net.norm->running_mean);
  EXPECT_EQ(text(use), "norm.running_mean");
  EXPECT_TRUE(use->buffer);
  EXPECT_FALSE(index.find(net.fc->weight)->buffer);
}

TEST(ParameterIndex, TellsTheBlocksOfPackedWeightsApart) {
  const torch::nn::MultiheadAttention attention(torch::nn::MultiheadAttentionOptions(4, 2));
  const ParameterIndex index(*attention);
  const auto blocks = attention->in_proj_weight.chunk(3);
  EXPECT_EQ(text(index.find(blocks[0])), "in_proj_weight[0+16]");
  EXPECT_EQ(text(index.find(blocks[1].t())), "in_proj_weight[16+16]");
  EXPECT_EQ(text(index.find(blocks[2].detach())), "in_proj_weight[32+16]");
  EXPECT_EQ(text(index.find(attention->in_proj_bias.narrow(0, 4, 8))), "in_proj_bias[4+8]");
}

// --- Several parameters in one storage -----------------------------------------------------------

/// What a tensor is, read from its values: those of parameter p are p * 1000 and up, in its memory
/// order.
std::string by_value(const at::Tensor& t, const std::vector<std::string>& names,
                     const std::vector<int64_t>& sizes) {
  const auto values = t.reshape({-1}).to(at::kLong);
  std::map<int64_t, bool> places;
  int64_t owner = -1;
  for (int64_t i = 0; i < values.numel(); ++i) {
    const auto value = values[i].item<int64_t>();
    if (owner >= 0 && value / 1000 != owner) return "";
    owner = value / 1000;
    places[value % 1000] = true;
  }
  const auto p = static_cast<size_t>(owner);
  if (static_cast<int64_t>(places.size()) == sizes[p]) return names[p];
  const auto first = places.begin()->first, last = places.rbegin()->first;
  return names[p] + "[" + std::to_string(first) + "+" + std::to_string(last - first + 1) + "]";
}

/// The shape of two tensors of this shape.
std::vector<int64_t> twice(at::IntArrayRef sizes) {
  std::vector<int64_t> result{2};
  result.insert(result.end(), sizes.begin(), sizes.end());
  return result;
}

TEST(ParameterIndex, AgreesWithTheValuesOfRandomViews) {
  std::mt19937_64 random(20260101);
  const auto draw = [&](int64_t n) {
    return static_cast<int64_t>(random() % static_cast<uint64_t>(n));
  };
  const std::vector<std::string> names{"a", "b", "c", "d"};
  const std::vector<std::vector<int64_t>> shapes{{4, 6}, {2, 3, 4}, {5}, {3, 3}};
  const std::vector<int64_t> sizes{24, 24, 5, 9};
  const auto flat = at::empty({62});  // all four, back to back
  std::vector<std::pair<std::string, at::Tensor>> named;
  int64_t at = 0;
  for (size_t p = 0; p < names.size(); ++p) {
    const auto part = flat.narrow(0, at, sizes[p]);
    part.copy_(at::arange(sizes[p]) + static_cast<double>(p) * 1000);
    named.emplace_back(names[p], part.view(shapes[p]));
    at += sizes[p];
  }
  const ParameterIndex index(named);
  int found = 0;
  for (int i = 0; i < 2'000; ++i) {
    auto t = named[static_cast<size_t>(draw(4))].second;
    for (int64_t steps = draw(4); steps > 0; --steps) {
      const int64_t d = t.dim() == 0 ? 0 : draw(t.dim());
      switch (t.dim() == 0 ? 3 : draw(5)) {
        case 0:
          t = t.transpose(d, draw(t.dim()));
          break;
        case 1: {
          const int64_t start = draw(t.size(d));
          t = t.narrow(d, start, 1 + draw(t.size(d) - start));
          break;
        }
        case 2:
          t = t.select(d, draw(t.size(d)));
          break;
        case 3:
          t = t.expand(twice(t.sizes()));
          break;
        default:
          t = t.slice(d, draw(t.size(d)), std::nullopt, 1 + draw(2));
      }
    }
    EXPECT_EQ(text(index.find(t)), by_value(t, names, sizes)) << t;
    found += index.find(t) ? 1 : 0;
  }
  EXPECT_EQ(found, 2'000);
  // Views of the flat tensor that lie in two parameters are no one's.
  EXPECT_FALSE(index.find(flat));
  EXPECT_FALSE(index.find(flat.narrow(0, 20, 8)));
  EXPECT_EQ(text(index.find(flat.narrow(0, 24, 24))), "b");
}

TEST(ParameterIndex, NeverTakesTheGapsOfAParameterForIt) {
  const auto flat = at::randn({4, 6});
  const auto left = flat.narrow(1, 0, 2), right = flat.narrow(1, 2, 4);
  const ParameterIndex index({{"left", left}, {"right", right}});
  EXPECT_EQ(text(index.find(left)), "left");
  EXPECT_EQ(text(index.find(left.t())), "left");
  EXPECT_EQ(text(index.find(right.unsqueeze(1))), "right");
  EXPECT_EQ(index.find(right)->extent, 22);
  EXPECT_FALSE(index.find(flat[1]));
  EXPECT_FALSE(index.find(flat));
  EXPECT_FALSE(index.find(right[1]));  // its own, but not known to be
}

TEST(ParameterIndex, FindsTheInnermostOfNestedParameters) {
  const auto packed = at::randn({6, 4});
  const ParameterIndex index({{"packed", packed},
                              {"query", packed.narrow(0, 0, 2)},
                              {"value", packed.narrow(0, 4, 2)},
                              {"row", packed[4]}});
  EXPECT_EQ(text(index.find(packed.narrow(0, 0, 2))), "query");
  EXPECT_EQ(text(index.find(packed[1])), "query[4+4]");
  EXPECT_EQ(text(index.find(packed.narrow(0, 2, 2))), "packed[8+8]");
  EXPECT_EQ(text(index.find(packed.narrow(0, 1, 2))), "packed[4+8]");
  EXPECT_EQ(text(index.find(packed[4])), "row");
  EXPECT_EQ(text(index.find(packed[5])), "value[4+4]");
  EXPECT_EQ(text(index.find(packed)), "packed");
}

TEST(ParameterIndex, CountsInElementsOfTheParameterUnderOtherDtypes) {
  const auto c = at::randn({3, 2}, at::kComplexFloat);
  const ParameterIndex index({{"c", c}});
  EXPECT_EQ(text(index.find(at::view_as_real(c))), "c");
  EXPECT_EQ(text(index.find(at::real(c))), "c[0+6]");
  EXPECT_EQ(text(index.find(at::imag(c)[2])), "c[4+2]");
}

TEST(ParameterIndex, OverlappingWindowsAreNotKnownToUseAll) {
  const auto p = at::randn({6});
  const ParameterIndex index({{"p", p}});
  EXPECT_EQ(text(index.find(p.unfold(0, 3, 1))), "p[0+6]");
  EXPECT_EQ(text(index.find(p.as_strided({3, 2}, {1, 1}))), "p[0+4]");  // 6 elements in 4 places
}

// --- Copies ----------------------------------------------------------------------------------------

TEST(ParameterIndex, KnowsCopiesThatAutogradRecorded) {
  const auto w = parameter({3, 4});
  const ParameterIndex index({{"w", w}});
  const auto half = w.to(at::kBFloat16);
  const auto find = [&](const at::Tensor& t) { return text(index.find(t)); };
  for (const auto& whole :
       {half, half.t(), half.view(-1), w.clone(), w.t().to(at::kHalf), w.t().contiguous(),
        w.view({2, 6}).to(at::kHalf).to(at::kDouble),
        w.transpose(0, 1).unsqueeze(0).clone().squeeze(0), w.expand({2, 3, 4}).to(at::kHalf)}) {
    EXPECT_EQ(find(whole), "copy of w") << whole.sizes();
  }
  EXPECT_EQ(find(half[1]), "copy of w[4+4]");
  EXPECT_EQ(find(half.narrow(1, 1, 2).t()), "copy of w[1+10]");
}

TEST(ParameterIndex, NeverGuessesWhereACopyIsFrom) {
  const auto w = parameter({3, 4});
  const auto square = parameter({4, 4});
  const auto frozen = at::randn({3, 4});
  const ParameterIndex index({{"w", w}, {"square", square}, {"frozen", frozen}});
  EXPECT_FALSE(index.find(w[0].to(at::kHalf)));     // which part is not in the graph
  EXPECT_FALSE(index.find(w.t().contiguous()[0]));  // its elements moved
  EXPECT_FALSE(index.find(square.t().contiguous()[0]));
  EXPECT_FALSE(index.find((w * 2).to(at::kHalf)));         // computed
  EXPECT_FALSE(index.find(frozen.to(at::kHalf)));          // no graph
  EXPECT_FALSE(index.find(w.to(at::kHalf).detach()));      // cut off
  EXPECT_FALSE(index.find(parameter({3}).to(at::kHalf)));  // another leaf
  auto changed = w.to(at::kHalf);
  changed.mul_(2);
  EXPECT_FALSE(index.find(changed));
  auto changed_secretly = w.to(at::kHalf);
  {
    const at::NoGradGuard no_grad;
    EXPECT_FALSE(index.find(w.to(at::kHalf)));
    changed_secretly.mul_(2);
  }
  EXPECT_FALSE(index.find(changed_secretly));
  const c10::InferenceMode inference;
  EXPECT_FALSE(index.find(w.to(at::kHalf)));
  EXPECT_EQ(text(index.find(w.t())), "w");
}

// --- New memory ------------------------------------------------------------------------------------

const std::string kOutOfDate =
    "ParameterIndex is out of date: 'fc.bias' has other memory than when the index was made (after "
    "model->to(), set_data() or the like); call refresh()";

TEST(ParameterIndex, SaysWhenItIsOutOfDateAndRefreshes) {
  Net net;
  ParameterIndex index(net);
  const auto find = [&](const at::Tensor& t) { return [&index, t] { index.find(t); }; };
  EXPECT_FALSE(index.stale());
  const auto old_weight = net.norm->weight.detach();
  net.fc->bias.set_data(at::randn({3}));
  EXPECT_TRUE(index.stale());
  EXPECT_EQ(message_of(find(net.fc->bias)), kOutOfDate);
  EXPECT_EQ(message_of(find(net.fc->bias.unsqueeze(0))), kOutOfDate);
  EXPECT_EQ(message_of(find(net.fc->bias.to(at::kDouble))), kOutOfDate);
  EXPECT_EQ(text(index.find(net.norm->weight)), "norm.weight");
  index.refresh();
  EXPECT_FALSE(index.stale());
  EXPECT_EQ(text(index.find(net.fc->bias.unsqueeze(0))), "fc.bias");
  net.to(at::kDouble);
  EXPECT_TRUE(index.stale());
  index.refresh();
  EXPECT_EQ(text(index.find(net.fc->weight.t())), "tied=fc.weight");
  EXPECT_EQ(text(index.find(net.norm->weight)), "norm.weight");
  EXPECT_FALSE(index.find(old_weight));
}

TEST(ParameterIndex, NeverTakesReusedMemoryForAParameter) {
  const Net net;
  const ParameterIndex index(net);
  const auto old_memory = net.fc->bias.detach();  // as an activation would reuse it
  net.fc->bias.set_data(at::randn({3}));
  EXPECT_EQ(message_of([&] { index.find(old_memory); }), kOutOfDate);
  net.fc->bias.set_data(old_memory.narrow(0, 1, 2));
  EXPECT_EQ(message_of([&] { index.find(old_memory[1]); }), kOutOfDate);
}

TEST(ParameterIndex, LeavesOutParametersWithoutMemory) {
  ParameterIndex index({{"none", at::Tensor()}, {"empty", at::empty({0})}, {"w", at::ones(2)}});
  EXPECT_EQ(index.size(), 1U);
  EXPECT_FALSE(index.stale());
  index.refresh();
  EXPECT_EQ(index.size(), 1U);
}

// --- In handlers -----------------------------------------------------------------------------------

/// Writes down which parameters each op uses.
struct Uses : OpHandler {
  explicit Uses(const torch::nn::Module& module, bool into_parts = false)
      : index(module), parts(into_parts) {}
  void boxed(OpCall& call) override {
    if (parts && call.composite()) return call.run_parts();
    std::string line;
    const auto note = [&](const at::Tensor& t) {
      if (const auto use = index.find(t)) line += " " + text(use);
    };
    for (const auto& value : call.stack()) {
      if (value.isTensor()) note(value.toTensor());
      if (value.isTensorList()) {
        for (const at::Tensor& t : value.toTensorList()) note(t);
      }
    }
    if (!line.empty()) lines.push_back(call.name() + line);
    call.run();
  }
  ParameterIndex index;
  bool parts;
  std::vector<std::string> lines;
};

using Lines = std::vector<std::string>;

TEST(ParameterIndex, NamesTheParametersOfOps) {
  torch::nn::Linear layer(3, 2);
  Uses uses(*layer);
  {
    const OpMode mode(uses);
    layer(at::randn({4, 3}));
    layer(at::randn({1, 4, 3}));
  }
  EXPECT_EQ(uses.lines, (Lines{"aten::t weight", "aten::addmm bias weight", "aten::t weight",
                               "aten::matmul weight", "aten::add_.Tensor bias"}));
}

TEST(ParameterIndex, NamesThePartsOfPackedWeights) {
  torch::nn::MultiheadAttention attention(torch::nn::MultiheadAttentionOptions(4, 2));
  Uses uses(*attention);
  const auto q = at::randn({3, 1, 4}), kv = at::randn({5, 1, 4});
  {
    const OpMode mode(uses);
    attention(q, kv, kv);
  }
  std::erase_if(uses.lines,
                [](const std::string& line) { return !line.starts_with("aten::matmul"); });
  EXPECT_EQ(uses.lines,
            (Lines{"aten::matmul in_proj_weight[0+16]", "aten::matmul in_proj_weight[16+32]",
                   "aten::matmul out_proj.weight"}));
}

TEST(ParameterIndex, NamesTheParametersOfAnLstm) {
  torch::nn::LSTM lstm(3, 2);
  Uses uses(*lstm);
  {
    const OpMode mode(uses);
    lstm(at::randn({4, 1, 3}));
  }
  EXPECT_EQ(uses.lines, Lines{"aten::lstm.input weight_ih_l0 weight_hh_l0 bias_ih_l0 bias_hh_l0"});
}

TEST(ParameterIndex, NamesAutocastsCopies) {
  torch::nn::Linear layer(3, 2);
  Uses uses(*layer, true);
  {
    const Autocast amp(at::kCPU);
    const OpMode mode(uses);
    layer(at::randn({2, 4, 3}));
    at::linear(at::randn({4, 3}), layer->weight);  // takes the copy from autocast's cache
    at::linear(at::randn({4, 3}), layer->weight);
  }
  std::erase_if(uses.lines, [](const std::string& line) { return !line.starts_with("aten::mm"); });
  EXPECT_EQ(uses.lines, Lines(3, "aten::mm copy of weight"));
}

}  // namespace
}  // namespace torchlore
