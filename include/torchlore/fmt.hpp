#pragma once

#include <fmt/format.h>

#include <string_view>

#include "torchlore/core/reducer.hpp"
#include "torchlore/core/step_result.hpp"

/// @file
/// fmt formatters of torchlore's public types; the other headers do not include fmt.
/// ```cpp
/// fmt::print("step {}: {}\n", step.steps(), result);
/// ```

namespace fmt {

/// The operation's name: `sum`. Takes the options of a string.
template <>
struct formatter<torchlore::ReduceOp> : formatter<std::string_view> {
  /// Writes the name.
  template <typename Context>
  auto format(torchlore::ReduceOp op, Context& context) const {
    return formatter<std::string_view>::format(torchlore::to_string(op), context);
  }
};

/// The outcome's name: `stepped`. Takes the options of a string.
template <>
struct formatter<torchlore::StepResult::Outcome> : formatter<std::string_view> {
  /// Writes the name.
  template <typename Context>
  auto format(torchlore::StepResult::Outcome outcome, Context& context) const {
    return formatter<std::string_view>::format(torchlore::to_string(outcome), context);
  }
};

/// Outcome, loss and gradient norm: `stepped, loss 0.6931, gradient norm 1.25`. Takes the options of a
/// number for both numbers: `{:.2f}`. Host syncs: 2 on an accelerator.
template <>
struct formatter<torchlore::StepResult> : formatter<double> {
  /// Writes the three.
  template <typename Context>
  auto format(const torchlore::StepResult& result, Context& context) const {
    context.advance_to(
        fmt::format_to(context.out(), "{}, loss ", torchlore::to_string(result.outcome())));
    context.advance_to(formatter<double>::format(result.loss(), context));
    context.advance_to(fmt::format_to(context.out(), ", gradient norm "));
    return formatter<double>::format(result.grad_norm(), context);
  }
};

}  // namespace fmt
