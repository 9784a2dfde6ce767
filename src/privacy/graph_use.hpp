#pragma once

#include <ATen/core/Tensor.h>

/// A graph whose gradients were taken must not be used again: an example would count twice.
namespace torchlore::detail {

/// @throws c10::Error if `use_up` has been here: for these losses, or others behind which its ops are.
void check_not_used_up(const at::Tensor& losses);

/// Frees what the graph behind the losses saved, as `backward` does, and marks it: a later backward through
/// it throws.
void use_up(const at::Tensor& losses);

/// Whether users have put hooks on a parameter: they would see sums over examples, or nothing.
bool has_hooks(const at::Tensor& parameter);

}  // namespace torchlore::detail
