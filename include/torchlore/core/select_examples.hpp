#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/index_select.h>

#include <concepts>
#include <tuple>
#include <utility>
#include <vector>

#include "torchlore/core/batch.hpp"

/// Chosen examples of a batch. For a batch type of your own, write it beside `batch_size` and `slice`:
/// ```cpp
/// Dialogue select_examples(const Dialogue& d, const at::Tensor& indices) {
///   return {d.tokens.index_select(0, indices), d.speakers.index_select(0, indices)};
/// }
/// ```
namespace torchlore {

/// The examples of a tensor with these indices ([n] int64): its rows. @note O(result).
inline at::Tensor select_examples(const at::Tensor& batch, const at::Tensor& indices);
/// The same of data and target.
template <ExampleLike T>
T select_examples(const T& batch, const at::Tensor& indices);
/// The same of both parts.
template <typename A, typename B>
std::pair<A, B> select_examples(const std::pair<A, B>& batch, const at::Tensor& indices);
/// The same of all parts.
template <typename... Ts>
std::tuple<Ts...> select_examples(const std::tuple<Ts...>& batch, const at::Tensor& indices);
/// The same of all elements.
template <typename T>
std::vector<T> select_examples(const std::vector<T>& batch, const at::Tensor& indices);

/// A batch of which chosen examples can be had, also repeated ones.
template <typename T>
concept SelectableBatch = Batch<T> && requires(const T& batch, const at::Tensor& indices) {
  { select_examples(batch, indices) } -> std::convertible_to<T>;
};

inline at::Tensor select_examples(const at::Tensor& batch, const at::Tensor& indices) {
  return at::index_select(batch, 0, indices.to(batch.device()));
}

template <ExampleLike T>
T select_examples(const T& batch, const at::Tensor& indices) {
  T part = batch;
  part.data = select_examples(batch.data, indices);
  part.target = select_examples(batch.target, indices);
  return part;
}

template <typename A, typename B>
std::pair<A, B> select_examples(const std::pair<A, B>& batch, const at::Tensor& indices) {
  return {select_examples(batch.first, indices), select_examples(batch.second, indices)};
}

template <typename... Ts>
std::tuple<Ts...> select_examples(const std::tuple<Ts...>& batch, const at::Tensor& indices) {
  return std::apply(
      [&](const auto&... part) { return std::tuple<Ts...>(select_examples(part, indices)...); },
      batch);
}

template <typename T>
std::vector<T> select_examples(const std::vector<T>& batch, const at::Tensor& indices) {
  std::vector<T> result;
  result.reserve(batch.size());
  for (const auto& part : batch) result.push_back(select_examples(part, indices));
  return result;
}

}  // namespace torchlore
