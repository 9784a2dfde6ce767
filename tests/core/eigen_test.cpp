#include "torchlore/core/eigen.hpp"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include "support/message.hpp"
#include "support/tolerance.hpp"

namespace torchlore {
namespace {

using testing::message_of;
using testing::same;

at::Tensor counting(at::IntArrayRef shape, at::ScalarType dtype = at::kDouble) {
  int64_t count = 1;
  for (const auto size : shape) count *= size;
  return at::arange(count, dtype).view(shape);
}

template <typename Map>
void expect_equal(const Map& map, const at::Tensor& tensor) {
  ASSERT_EQ(map.rows(), tensor.size(0));
  ASSERT_EQ(map.cols(), tensor.size(1));
  for (int64_t i = 0; i < map.rows(); ++i) {
    for (int64_t j = 0; j < map.cols(); ++j) EXPECT_EQ(map(i, j), tensor[i][j].item<double>());
  }
}

TEST(EigenMatrix, SeesTheTensorsMemoryWhateverItsStrides) {
  const auto base = counting({4, 6});
  for (const auto& tensor : {base, base.t(), base.slice(0, 1, 4, 2).slice(1, 0, 6, 3),
                             base.t().slice(0, 1, 6, 2), base.slice(1, 2, 2)}) {
    const auto map = eigen_matrix<const double>(tensor);
    expect_equal(map, tensor);
  }
  EXPECT_EQ(eigen_matrix<double>(base).data(), base.const_data_ptr<double>());
}

TEST(EigenMatrix, WritesReachTheTensor) {
  const auto tensor = counting({3, 4});
  auto map = eigen_matrix<double>(tensor.t());
  map.row(1).setConstant(-1);  // column 1 of the tensor
  auto expected = counting({3, 4});
  expected.select(1, 1).fill_(-1);
  EXPECT_TRUE(same(tensor, expected));
}

TEST(EigenMatrix, TakesFewerDimensions) {
  EXPECT_EQ(eigen_matrix<const double>(at::full({}, 3.0, at::kDouble))(0, 0), 3);
  const auto odd = counting({5}).slice(0, 1, 5, 2);
  const auto column = eigen_matrix<const double>(odd);
  ASSERT_EQ(column.rows(), 2);
  ASSERT_EQ(column.cols(), 1);
  EXPECT_EQ(column(1, 0), 3);
}

TEST(EigenMatrix, MultipliesAsTheTensorsDo) {
  const auto a = counting({3, 4}), b = counting({5, 4});
  const auto product = at::empty({3, 5}, at::kDouble);
  eigen_matrix<double>(product) = eigen_matrix<const double>(a) * eigen_matrix<const double>(b.t());
  EXPECT_TRUE(same(product, at::matmul(a, b.t())));
}

TEST(EigenMatrix, TakesEveryScalar) {
  const auto first = []<typename T>(T, at::ScalarType dtype) {
    return eigen_matrix<T>(at::full({1, 1}, 7, dtype))(0, 0) == T(7);
  };
  EXPECT_TRUE(first(float{}, at::kFloat));
  EXPECT_TRUE(first(int8_t{}, at::kChar));
  EXPECT_TRUE(first(uint8_t{}, at::kByte));
  EXPECT_TRUE(first(int16_t{}, at::kShort));
  EXPECT_TRUE(first(int32_t{}, at::kInt));
  EXPECT_TRUE(first(int64_t{}, at::kLong));
}

TEST(EigenVector, SeesOneDimension) {
  const auto tensor = counting({3, 4});
  auto map = eigen_vector<double>(tensor.select(1, 2));
  EXPECT_EQ(map.sum(), 2 + 6 + 10);
  map *= 2;
  EXPECT_EQ(tensor[1][2].item<double>(), 12);
  EXPECT_EQ(eigen_vector<const double>(counting({0})).size(), 0);
}

TEST(EigenMatrix, SaysWhatItCannotMap) {
  const auto matrix = [](const at::Tensor& tensor) {
    return [tensor] { eigen_matrix<float>(tensor); };
  };
  EXPECT_EQ(message_of<c10::ValueError>(matrix(at::Tensor())), "an undefined tensor has no matrix");
  EXPECT_EQ(message_of<c10::TypeError>(matrix(counting({2, 2}))),
            "the tensor holds Double, but a matrix of Float was asked for; convert it with .to()");
  EXPECT_EQ(message_of<c10::TypeError>(matrix(at::ones({2, 2}).to_sparse())),
            "Eigen needs a dense tensor on the CPU, but got Sparse on cpu");
  EXPECT_EQ(message_of<c10::TypeError>(matrix(at::ones({2}, at::TensorOptions(at::kMeta)))),
            "Eigen needs a dense tensor on the CPU, but got Strided on meta");
  EXPECT_EQ(message_of<c10::ValueError>(matrix(at::ones({1, 2, 3}))),
            "expected at most 2 dimensions, but the shape is [1, 2, 3]");
  EXPECT_EQ(message_of<c10::ValueError>([] {
              eigen_vector<float>(at::ones({1, 2}));
            }),
            "expected at most 1 dimensions, but the shape is [1, 2]");
  const auto negated = at::imag(at::complex(at::ones({2}), at::ones({2})).conj());
  EXPECT_EQ(message_of<c10::ValueError>(matrix(negated)),
            "the tensor's negation is not carried out yet; pass tensor.resolve_neg()");
  const auto expanded = at::ones({1, 3}).expand({2, 3});
  EXPECT_EQ(
      message_of<c10::ValueError>(matrix(expanded)),
      "elements of the tensor share memory (it was expanded), so it cannot be written; pass a "
      "clone, or map it as const");
  EXPECT_EQ(eigen_matrix<const float>(expanded).sum(), 6);
}

TEST(TensorView, SharesTheMatrixsMemory) {
  Eigen::MatrixXd columns(2, 3);
  columns << 1, 2, 3, 4, 5, 6;
  const auto tensor = tensor_view(columns);
  EXPECT_EQ(tensor.sizes(), (at::IntArrayRef{2, 3}));
  EXPECT_EQ(tensor[1][0].item<double>(), 4);
  tensor[1][0] = -4;
  EXPECT_EQ(columns(1, 0), -4);

  Eigen::Matrix<float, 2, 3, Eigen::RowMajor> rows;
  rows << 1, 2, 3, 4, 5, 6;
  EXPECT_TRUE(tensor_view(rows).is_contiguous());
  EXPECT_EQ(tensor_view(rows)[1][0].item<float>(), 4);

  Eigen::VectorXd vector = Eigen::VectorXd::LinSpaced(4, 0, 3);
  EXPECT_TRUE(same(tensor_view(vector), counting({4})));
  Eigen::ArrayXXf empty(0, 5);
  EXPECT_EQ(tensor_view(empty).sizes(), (at::IntArrayRef{0, 5}));
}

TEST(TensorOf, OwnsTheMatrix) {
  Eigen::MatrixXd matrix = Eigen::MatrixXd::Constant(100, 50, 2);
  const double* data = matrix.data();
  at::Tensor tensor = tensor_of(std::move(matrix));
  EXPECT_EQ(tensor.const_data_ptr<double>(), data);  // moved, not copied
  const auto row = tensor[99];
  tensor = at::Tensor();
  EXPECT_EQ(row.sum().item<double>(), 100);

  const Eigen::Vector4f fixed(1, 2, 3, 4);
  const auto copy = tensor_of(fixed);
  EXPECT_NE(copy.const_data_ptr<float>(), fixed.data());
  EXPECT_EQ(copy.sum().item<float>(), 10);
}

template <typename M>
concept Viewable = requires(M&& matrix) {
  tensor_view(std::forward<M>(matrix));
};

TEST(TensorView, RefusesWhatDiesOrIsConstant) {
  static_assert(Viewable<Eigen::MatrixXd&>);
  static_assert(!Viewable<Eigen::MatrixXd>);
  static_assert(!Viewable<const Eigen::MatrixXd&>);
}

}  // namespace
}  // namespace torchlore
