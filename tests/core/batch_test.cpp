#include "torchlore/core/batch.hpp"

#include <ATen/Functions.h>
#include <gtest/gtest.h>
#include <torch/data/example.h>

#include "support/message.hpp"

namespace mine {

struct Dialogue {
  at::Tensor tokens, speakers;
};
int64_t batch_size(const Dialogue& d) { return d.tokens.size(0); }
Dialogue slice(const Dialogue& d, int64_t from, int64_t to) {
  return {d.tokens.slice(0, from, to), d.speakers.slice(0, from, to)};
}

}  // namespace mine

namespace torchlore {
namespace {

static_assert(Batch<at::Tensor>);
static_assert(Batch<torch::data::Example<>>);
static_assert(Batch<std::pair<at::Tensor, at::Tensor>>);
static_assert(Batch<std::tuple<at::Tensor, std::vector<at::Tensor>>>);
static_assert(Batch<std::vector<torch::data::Example<>>>);
static_assert(Batch<mine::Dialogue>);
static_assert(!Batch<int>);

TEST(Batch, CountsAndSlicesWhateverHoldsTensors) {
  const auto x = at::arange(5), y = at::arange(10).view({5, 2});
  const torch::data::Example<> example(x, y);
  EXPECT_EQ(batch_size(example), 5);
  EXPECT_TRUE(at::equal(slice(example, 1, 3).target, y.slice(0, 1, 3)));
  const std::tuple<at::Tensor, std::vector<at::Tensor>> nested(x, {x, y});
  EXPECT_EQ(batch_size(nested), 5);
  EXPECT_TRUE(at::equal(std::get<1>(slice(nested, 4, 5))[1], y.slice(0, 4, 5)));
  EXPECT_EQ(batch_size(std::vector<at::Tensor>{}), 0);
  EXPECT_EQ(batch_size(mine::Dialogue{x, y}), 5);
  EXPECT_EQ(batch_size(slice(mine::Dialogue{x, y}, 2, 4)), 2);
}

TEST(Batch, NamesPartsThatDiffer) {
  const std::pair unequal(at::arange(3), at::arange(4));
  EXPECT_EQ(testing::message_of<c10::ValueError>([&] { batch_size(unequal); }),
            "the parts of a batch hold 3 and 4 examples; they must be equal");
  EXPECT_EQ(testing::message_of<c10::ValueError>([] { batch_size(at::ones({})); }),
            "a batch must be a tensor whose first dimension counts the examples, but is 0-d");
}

}  // namespace
}  // namespace torchlore
