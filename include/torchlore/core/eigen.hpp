#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>

#include <Eigen/Core>
#include <concepts>
#include <cstdint>
#include <functional>
#include <memory>
#include <type_traits>
#include <utility>

/// Tensors and Eigen matrices in each other's place, without a copy.
///
/// ```cpp
/// auto x = torchlore::eigen_matrix<double>(tensor);        // writes go to the tensor
/// auto y = torchlore::eigen_matrix<const double>(tensor);  // reads only
/// at::Tensor view = torchlore::tensor_view(matrix);        // lives no longer than the matrix
/// at::Tensor own = torchlore::tensor_of(std::move(matrix));
/// ```
namespace torchlore {

/// The element types that LibTorch and Eigen share.
template <typename T>
concept EigenScalar = std::same_as<T, float> || std::same_as<T, double> ||
    std::same_as<T, int8_t> || std::same_as<T, uint8_t> || std::same_as<T, int16_t> ||
    std::same_as<T, int32_t> || std::same_as<T, int64_t>;

/// A matrix or array of Eigen that holds its own elements.
template <typename M>
concept EigenPlain =
    std::derived_from<M, Eigen::PlainObjectBase<M>> && EigenScalar<typename M::Scalar>;

/// A tensor's memory as a matrix, with any strides. `T` is const for a map that only reads.
template <typename T>
using EigenMatrixMap =
    Eigen::Map<std::conditional_t<std::is_const_v<T>,
                                  const Eigen::Matrix<std::remove_const_t<T>, Eigen::Dynamic,
                                                      Eigen::Dynamic, Eigen::RowMajor>,
                                  Eigen::Matrix<std::remove_const_t<T>, Eigen::Dynamic,
                                                Eigen::Dynamic, Eigen::RowMajor>>,
               Eigen::Unaligned, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>>;

/// A tensor's memory as a column vector, with any stride.
template <typename T>
using EigenVectorMap =
    Eigen::Map<std::conditional_t<std::is_const_v<T>,
                                  const Eigen::Matrix<std::remove_const_t<T>, Eigen::Dynamic, 1>,
                                  Eigen::Matrix<std::remove_const_t<T>, Eigen::Dynamic, 1>>,
               Eigen::Unaligned, Eigen::InnerStride<Eigen::Dynamic>>;

namespace detail {

/// Where a tensor's elements lie, checked for Eigen.
struct EigenLayout {
  void* data = nullptr;
  int64_t rows = 1, columns = 1;
  int64_t row_stride = 1, column_stride = 1;
};
EigenLayout eigen_layout(const at::Tensor& tensor, at::ScalarType dtype, int64_t max_dim,
                         bool writes);

template <typename T>
EigenLayout eigen_layout_of(const at::Tensor& tensor, int64_t max_dim) {
  using Scalar = std::remove_const_t<T>;
  return eigen_layout(tensor, c10::CppTypeToScalarType<Scalar>::value, max_dim,
                      !std::is_const_v<T>);
}

template <EigenPlain M>
at::Tensor blob_of(M& matrix, std::function<void(void*)> deleter) {
  const auto options = at::TensorOptions(c10::CppTypeToScalarType<typename M::Scalar>::value);
  if constexpr (M::IsVectorAtCompileTime != 0) {
    return at::from_blob(matrix.data(), {matrix.size()}, deleter, options);
  } else {
    return at::from_blob(matrix.data(), {matrix.rows(), matrix.cols()},
                         {matrix.rowStride(), matrix.colStride()}, deleter, options);
  }
}

}  // namespace detail

/// A tensor as an Eigen matrix over the same memory.
///
/// The map does not keep the memory alive: keep the tensor, or one that shares its memory, as long
/// as the map (a map of `f()` dangles, one of `x.t()` lives as long as `x`). Writes through it are
/// seen by all who share the memory, but not by autograd, which neither records them nor notices
/// that a saved value changed.
/// @param tensor CPU, dense, dtype T, at most 2 dimensions: [R, C]; [N] is a column, a 0-d tensor
/// 1×1.
/// @throws c10::TypeError if dtype, device or layout differ; c10::ValueError for more dimensions, a
///         negation not yet carried out, or, unless T is const, elements that share memory
///         (expand).
template <typename T>
requires EigenScalar<std::remove_const_t<T>> EigenMatrixMap<T> eigen_matrix(
    const at::Tensor& tensor) {
  const auto layout = detail::eigen_layout_of<T>(tensor, 2);
  return {static_cast<T*>(layout.data), layout.rows, layout.columns,
          Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>(layout.row_stride, layout.column_stride)};
}

/// A tensor of at most one dimension as an Eigen column vector; otherwise as `eigen_matrix`.
template <typename T>
requires EigenScalar<std::remove_const_t<T>> EigenVectorMap<T> eigen_vector(
    const at::Tensor& tensor) {
  const auto layout = detail::eigen_layout_of<T>(tensor, 1);
  return {static_cast<T*>(layout.data), layout.rows,
          Eigen::InnerStride<Eigen::Dynamic>(layout.row_stride)};
}

/// An Eigen matrix or array as a tensor over the same memory: [R, C], in the matrix's storage
/// order, or [N] for a type that is a vector.
///
/// The matrix must outlive the tensor and all its views, and must not be resized meanwhile.
template <EigenPlain M>
at::Tensor tensor_view(M& matrix) {
  return detail::blob_of(matrix, [](void*) {});
}
template <EigenPlain M>
at::Tensor tensor_view(const M& matrix) = delete;  // a tensor cannot be read-only: see tensor_of

/// An Eigen matrix or array as a tensor that owns it: moved in without a copy of the elements, or
/// copied from an lvalue. Shape and strides as `tensor_view`.
template <EigenPlain M>
at::Tensor tensor_of(M matrix) {
  auto owner = std::make_shared<M>(std::move(matrix));
  return detail::blob_of(*owner, [owner](void*) {});
}

}  // namespace torchlore
