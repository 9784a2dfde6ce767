#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "../../src/privacy/kernels/embedding.hpp"
#include "../../src/privacy/kernels/normalization.hpp"
#include "per_example_kernel_test.hpp"

namespace torchlore {
namespace {

using kernels::ExampleLayout;

const std::vector<ExampleLayout> kLayouts = {{1, 3, 1}, {1, 2, 9}, {9, 2, 1}, {3, 4, 5},
                                             {1, 1, 6}, {1, 0, 2}, {0, 2, 1}};

using NormKernelTest = testing::PerExampleKernelTest;

TEST_P(NormKernelTest, LayerNormEqualsSumsInDouble) {
  for (const auto& layout : kLayouts) {
    for (const int64_t width : {1, 7, 8, 15, 16, 17, 49, 128}) {
      for (const bool centered : {true, false}) {
        SCOPED_TRACE(::testing::Message() << layout.outer << " " << layout.batch << " "
                                          << layout.inner << " x " << width);
        const std::vector<int64_t> rows{layout.outer, layout.batch, layout.inner};
        const auto x = at::randn({layout.outer, layout.batch, layout.inner, width}) + 3;
        const auto g = at::randn(x.sizes());
        const auto mean = at::randn(rows), rstd = at::rand(rows);
        Gradients weight(layout.batch, width), bias(layout.batch, width);
        Gradients weight_norms(layout.batch, 0), bias_norms(layout.batch, 0);
        const kernels::NormalizedRows all{.layout = layout,
                                          .input = x.const_data_ptr<float>(),
                                          .gradient = g.const_data_ptr<float>(),
                                          .mean = centered ? mean.const_data_ptr<float>() : nullptr,
                                          .rstd = rstd.const_data_ptr<float>(),
                                          .width = width};
        kernels::layer_norm_gradients(all, weight.all(), bias.all(), scratch, *k);
        kernels::layer_norm_gradients(all, weight_norms.norms_only(), bias_norms.norms_only(),
                                      scratch, *k);
        auto xhat = x.to(at::kDouble);
        if (centered) xhat = xhat - mean.unsqueeze(-1);
        xhat = xhat * rstd.unsqueeze(-1);
        const auto dw = (g * xhat).sum({0, 2}), db = g.to(at::kDouble).sum({0, 2});
        for (int64_t b = 0; b < layout.batch; ++b) {
          weight.expect(b, dw[b]);
          weight_norms.expect_norm(b, dw[b]);
          bias.expect(b, db[b]);
          bias_norms.expect_norm(b, db[b]);
        }
      }
    }
  }
}

TEST_P(NormKernelTest, GroupNormEqualsLibTorchInDouble) {
  constexpr int64_t batch = 3;
  for (const auto& [channels, groups] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {6, 1}, {6, 3}, {6, 6}, {32, 8}}) {
    for (const int64_t places : {1, 7, 31, 32, 33, 784, 5000}) {
      SCOPED_TRACE(::testing::Message() << channels << " / " << groups << " x " << places);
      // A mean that is large beside the spread must not cost digits.
      const auto x = at::randn({batch, channels, places}) + 50;
      const auto g = at::randn(x.sizes());
      const auto [y, mean, rstd] =
          at::native_group_norm(x, {}, {}, batch, channels, places, groups, 1e-5);
      Gradients weight(batch, channels), bias(batch, channels);
      Gradients weight_norms(batch, 0), bias_norms(batch, 0);
      const kernels::NormalizedChannels all{.batch = batch,
                                            .channels = channels,
                                            .groups = groups,
                                            .places = places,
                                            .input = x.const_data_ptr<float>(),
                                            .gradient = g.const_data_ptr<float>(),
                                            .mean = mean.const_data_ptr<float>(),
                                            .rstd = rstd.const_data_ptr<float>()};
      kernels::group_norm_gradients(all, weight.all(), bias.all(), *k);
      kernels::group_norm_gradients(all, weight_norms.norms_only(), bias_norms.norms_only(), *k);
      const auto spread = [&](const at::Tensor& t) {
        return t.to(at::kDouble).repeat_interleave(channels / groups, 1).unsqueeze(-1);
      };
      const auto dw = (g * ((x - spread(mean)) * spread(rstd))).sum(2);
      const auto db = g.to(at::kDouble).sum(2);
      for (int64_t b = 0; b < batch; ++b) {
        weight.expect(b, dw[b]);
        weight_norms.expect_norm(b, dw[b]);
        bias.expect(b, db[b]);
        bias_norms.expect_norm(b, db[b]);
      }
    }
  }
}

class EmbeddingKernelTest : public testing::PerExampleKernelTest {
 protected:
  /// The table's gradient of one example, in float64.
  static at::Tensor table_of(const at::Tensor& tokens, const at::Tensor& g, int64_t example,
                             int64_t vocabulary, int64_t padding) {
    return at::embedding_dense_backward(g.select(1, example).to(at::kDouble),
                                        tokens.select(1, example), vocabulary, padding, false);
  }
};

TEST_P(EmbeddingKernelTest, SumsRepeatedTokensBeforeTheNorm) {
  for (const auto& layout : kLayouts) {
    // Few tokens repeat, many seldom do; multiples of a power of two share their hashes' low bits.
    for (const int64_t vocabulary : {1, 3, 1 << 20}) {
      for (const int64_t width : {1, 16, 33}) {
        for (const int64_t padding : {-1, 0}) {
          SCOPED_TRACE(::testing::Message()
                       << layout.outer << " " << layout.batch << " " << layout.inner << " of "
                       << vocabulary << " x " << width << ", padding " << padding);
          const int64_t step = vocabulary > 1000 ? 1 << 16 : 1;
          const auto small =
              at::randint(vocabulary / step, {layout.outer, layout.batch, layout.inner}, at::kLong);
          const auto tokens = small * step;
          const auto g = at::randn({layout.outer, layout.batch, layout.inner, width});
          auto norms = at::ones({layout.batch}, at::kDouble);
          const kernels::EmbeddedTokens all{.layout = layout,
                                            .tokens = tokens.const_data_ptr<int64_t>(),
                                            .gradient = g.const_data_ptr<float>(),
                                            .width = width,
                                            .padding_idx = padding};
          kernels::embedding_norms(all, norms.mutable_data_ptr<double>(), scratch, *k);
          for (int64_t b = 0; b < layout.batch; ++b) {
            // The same rows in a small table: LibTorch's would take a gigabyte.
            const auto dw = table_of(small, g, b, vocabulary / step, padding);
            const double expected = dw.square().sum().item<double>();
            EXPECT_NEAR(norms[b].item<double>() - 1, expected, 1e-5 * expected) << b;
          }
        }
      }
    }
  }
}

TEST_P(EmbeddingKernelTest, AddsWeightedRowsToTheTable) {
  const ExampleLayout layout{5, 4, 2};
  constexpr int64_t vocabulary = 6, padding = 2;
  for (const int64_t width : {1, 16, 33, 200}) {
    const auto tokens = at::randint(vocabulary, {layout.outer, layout.batch, layout.inner});
    auto g = at::randn({layout.outer, layout.batch, layout.inner, width});
    auto factors = at::rand({layout.batch});
    const auto start = at::randn({vocabulary, width});
    auto expected = start.to(at::kDouble);
    for (const int64_t b : {0, 2, 3}) {
      expected += table_of(tokens, g, b, vocabulary, padding) * factors[b].item<double>();
    }
    factors[1] = 0;
    g.select(1, 1).fill_(std::numeric_limits<float>::quiet_NaN());
    auto table = start.clone();
    kernels::add_embedding_gradients({.layout = layout,
                                      .tokens = tokens.const_data_ptr<int64_t>(),
                                      .gradient = g.const_data_ptr<float>(),
                                      .width = width,
                                      .padding_idx = padding},
                                     factors.const_data_ptr<float>(),
                                     table.mutable_data_ptr<float>(), *k);
    EXPECT_TRUE(testing::near(table, expected)) << width;
    EXPECT_TRUE(testing::same(table[padding], start[padding]));
  }
}

INSTANTIATE_TEST_SUITE_P(AllSets, NormKernelTest, ::testing::Values("portable", "avx2", "avx512"));
INSTANTIATE_TEST_SUITE_P(AllSets, EmbeddingKernelTest,
                         ::testing::Values("portable", "avx2", "avx512"));

}  // namespace
}  // namespace torchlore
