#pragma once

#include <ATen/core/Tensor.h>

#include <concepts>
#include <optional>
#include <ranges>
#include <tuple>
#include <type_traits>

/// The tensors inside an argument of any type.
///
/// `visit_tensors(value, f)` calls `f(tensor)` for the tensors of tensors, optionals, pairs, tuples,
/// arrays, vectors, maps, and of these in each other, always in the same order. A type of your own
/// takes part by a function beside it:
/// ```cpp
/// struct Batch { at::Tensor tokens, mask; };
/// template <typename F> void for_each_tensor(Batch& b, const F& f) { f(b.tokens); f(b.mask); }
/// ```
namespace torchlore {

namespace detail {

template <typename T>
inline constexpr bool is_optional = false;
template <typename T>
inline constexpr bool is_optional<std::optional<T>> = true;

template <typename T>
concept TupleLike = requires {
  std::tuple_size<T>::value;
};

/// A range whose elements can be visited in place: a vector or a map of classes, but no text.
template <typename T>
concept ClassRange =
    std::ranges::range<T> && std::is_lvalue_reference_v<std::ranges::range_reference_t<T>> &&
    std::is_class_v<std::ranges::range_value_t<T>>;

}  // namespace detail

/// Calls `f` with a reference to each tensor in `value`, also undefined ones. What holds no tensor
/// that it knows of is passed over.
template <typename T, typename F>
void visit_tensors(T& value, const F& f) {
  if constexpr (std::derived_from<T, at::Tensor>) {
    f(value);
  } else if constexpr (requires { for_each_tensor(value, f); }) {
    for_each_tensor(value, f);
  } else if constexpr (detail::is_optional<std::remove_const_t<T>>) {
    if (value.has_value()) visit_tensors(*value, f);
  } else if constexpr (detail::TupleLike<std::remove_const_t<T>>) {
    std::apply([&](auto&... part) { (visit_tensors(part, f), ...); }, value);
  } else if constexpr (detail::ClassRange<T>) {
    for (auto& element : value) visit_tensors(element, f);
  }
}

}  // namespace torchlore
