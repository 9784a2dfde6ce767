#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

/// What a batch is: anything with `batch_size(b)` and `slice(b, from, to)`, found where the type is
/// declared. They are here for tensors, for types with members `data` and `target` (such as
/// `torch::data::Example`), and for pairs, tuples and vectors of these. For a batch type of your
/// own, write both beside it:
/// ```cpp
/// struct Dialogue { at::Tensor tokens, speakers; };
/// int64_t batch_size(const Dialogue& d) { return d.tokens.size(0); }
/// Dialogue slice(const Dialogue& d, int64_t from, int64_t to) {
///   return {d.tokens.slice(0, from, to), d.speakers.slice(0, from, to)};
/// }
/// ```
namespace torchlore {

/// A type with members `data` and `target`.
template <typename T>
concept ExampleLike = requires(const T& t) {
  t.data;
  t.target;
};

// All forms are declared before any is defined, so that they may hold each other.

/// Examples in a tensor: its first dimension. @throws c10::ValueError for an undefined or 0-d
/// tensor.
inline int64_t batch_size(const at::Tensor& batch);
/// Examples [from, to) of a tensor, as a view.
inline at::Tensor slice(const at::Tensor& batch, int64_t from, int64_t to);
/// Examples in a batch with `data` and `target`. @throws c10::ValueError if they differ.
template <ExampleLike T>
int64_t batch_size(const T& batch);
/// Examples [from, to) of data and target, as views.
template <ExampleLike T>
T slice(const T& batch, int64_t from, int64_t to);
/// Examples in each part of a pair. @throws c10::ValueError if the parts differ.
template <typename A, typename B>
int64_t batch_size(const std::pair<A, B>& batch);
/// Examples [from, to) of both parts.
template <typename A, typename B>
std::pair<A, B> slice(const std::pair<A, B>& batch, int64_t from, int64_t to);
/// Examples in each part of a tuple. @throws c10::ValueError if the parts differ.
template <typename... Ts>
int64_t batch_size(const std::tuple<Ts...>& batch);
/// Examples [from, to) of all parts.
template <typename... Ts>
std::tuple<Ts...> slice(const std::tuple<Ts...>& batch, int64_t from, int64_t to);
/// Examples in each part of a vector (0 for an empty one). @throws c10::ValueError if they differ.
template <typename T>
int64_t batch_size(const std::vector<T>& batch);
/// Examples [from, to) of all parts.
template <typename T>
std::vector<T> slice(const std::vector<T>& batch, int64_t from, int64_t to);

/// Anything with `batch_size(b)` and `slice(b, from, to)`.
template <typename T>
concept Batch = requires(const T& batch, int64_t i) {
  { batch_size(batch) } -> std::convertible_to<int64_t>;
  { slice(batch, i, i) } -> std::convertible_to<T>;
};

namespace detail {

inline int64_t same_size(int64_t first, int64_t other) {
  TORCH_CHECK_VALUE(first == other, "the parts of a batch hold ", first, " and ", other,
                    " examples; they must be equal");
  return first;
}

}  // namespace detail

inline int64_t batch_size(const at::Tensor& batch) {
  TORCH_CHECK_VALUE(batch.defined() && batch.dim() > 0,
                    "a batch must be a tensor whose first dimension counts the examples, but is ",
                    batch.defined() ? "0-d" : "undefined");
  return batch.size(0);
}

inline at::Tensor slice(const at::Tensor& batch, int64_t from, int64_t to) {
  return batch.slice(0, from, to);
}

template <ExampleLike T>
int64_t batch_size(const T& batch) {
  return detail::same_size(batch_size(batch.data), batch_size(batch.target));
}

template <ExampleLike T>
T slice(const T& batch, int64_t from, int64_t to) {
  T part = batch;
  part.data = slice(batch.data, from, to);
  part.target = slice(batch.target, from, to);
  return part;
}

template <typename A, typename B>
int64_t batch_size(const std::pair<A, B>& batch) {
  return detail::same_size(batch_size(batch.first), batch_size(batch.second));
}

template <typename A, typename B>
std::pair<A, B> slice(const std::pair<A, B>& batch, int64_t from, int64_t to) {
  return {slice(batch.first, from, to), slice(batch.second, from, to)};
}

template <typename... Ts>
int64_t batch_size(const std::tuple<Ts...>& batch) {
  static_assert(sizeof...(Ts) > 0, "an empty tuple is no batch");
  const int64_t size = batch_size(std::get<0>(batch));
  std::apply([&](const auto&... part) { (detail::same_size(size, batch_size(part)), ...); }, batch);
  return size;
}

template <typename... Ts>
std::tuple<Ts...> slice(const std::tuple<Ts...>& batch, int64_t from, int64_t to) {
  return std::apply(
      [&](const auto&... part) { return std::tuple<Ts...>(slice(part, from, to)...); }, batch);
}

template <typename T>
int64_t batch_size(const std::vector<T>& batch) {
  if (batch.empty()) return 0;
  const int64_t size = batch_size(batch.front());
  for (const auto& part : batch) detail::same_size(size, batch_size(part));
  return size;
}

template <typename T>
std::vector<T> slice(const std::vector<T>& batch, int64_t from, int64_t to) {
  std::vector<T> result;
  result.reserve(batch.size());
  for (const auto& part : batch) result.push_back(slice(part, from, to));
  return result;
}

}  // namespace torchlore
