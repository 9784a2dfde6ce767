#include "block_state.hpp"

#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>
#include <torch/nn/module.h>

#include <algorithm>

#include "torchlore/core/bytes.hpp"

namespace torchlore::memory {
namespace {

/// Buffers up to this size are copied before each forward pass, in case it changes them.
constexpr auto kLargestKept = MiB(1);

bool small(const at::Tensor& buffer) {
  return Bytes(static_cast<int64_t>(buffer.nbytes())) <= kLargestKept;
}

/// Norm layers write their running statistics, one number per channel, past the version counter.
bool may_change_unseen(const at::Tensor& buffer) {
  return buffer.is_floating_point() && buffer.dim() <= 1;
}

uint32_t version_of(const at::Tensor& tensor) {
  return tensor.is_inference() ? 0 : static_cast<uint32_t>(tensor._version());
}

/// Writes values without telling autograd: for the graph nothing changes.
void write_unseen(const at::Tensor& buffer, const at::Tensor& values) {
  const at::NoGradGuard no_grad;
  buffer.variable_data().copy_(values);
}

at::Tensor copy_of(const at::Tensor& buffer) {
  const at::NoGradGuard no_grad;
  return buffer.detach().clone();
}

/// A parameter's name, with its module's place if there are several.
std::string name_of(const std::vector<std::shared_ptr<torch::nn::Module>>& modules,
                    size_t parameter) {
  for (size_t i = 0; i < modules.size(); ++i) {
    const auto named = modules[i]->named_parameters();
    if (parameter < named.size()) {
      return (modules.size() > 1 ? std::to_string(i) + "." : "") + named[parameter].key();
    }
    parameter -= named.size();
  }
  return "?";
}

}  // namespace

BlockState::Look::Look(const at::Tensor& parameter)
    : tensor(parameter.unsafeGetTensorImpl()),
      data(parameter.has_storage() ? parameter.storage().data() : nullptr),
      version(version_of(parameter)),
      requires_grad(parameter.requires_grad()) {}

BlockState::BlockState(std::vector<std::shared_ptr<torch::nn::Module>> modules,
                       std::vector<at::Tensor> buffers, bool module_buffers)
    : modules_(std::move(modules)) {
  for (const auto& module : modules_) {
    for (const auto& parameter : module->parameters()) parameters_.emplace_back(parameter);
    if (!module_buffers) continue;
    for (auto& buffer : module->buffers()) buffers.push_back(std::move(buffer));
  }
  for (auto& buffer : buffers) {
    if (!buffer.defined()) continue;
    auto before = small(buffer) ? copy_of(buffer) : at::Tensor();
    const auto version = version_of(buffer);
    buffers_.push_back({std::move(buffer), std::move(before), version});
  }
}

void BlockState::forward_done() {
  std::erase_if(buffers_, [](const Buffer& b) {
    const bool changed = version_of(b.tensor) != b.version;
    TORCH_CHECK_NOT_IMPLEMENTED(
        b.before.defined() || !changed, "a checkpointed block changed a buffer of ",
        to_string(Bytes(static_cast<int64_t>(b.tensor.nbytes()))), " in place; buffers above ",
        to_string(kLargestKept),
        " are not brought back for the recomputation. Change it outside of the block, or pass "
        "{.keep_buffers = false}");
    return !changed && (!b.before.defined() || !may_change_unseen(b.tensor));
  });
}

void BlockState::check_parameters() const {
  std::vector<at::Tensor> now;
  for (const auto& module : modules_) {
    for (auto& parameter : module->parameters()) now.push_back(std::move(parameter));
  }
  TORCH_CHECK(now.size() == parameters_.size(), "a checkpointed block has ", now.size(),
              " parameters in backward, but had ", parameters_.size(), " in the forward pass");
  for (size_t i = 0; i < now.size(); ++i) {
    const auto& first = parameters_[i];
    const Look look(now[i]);
    const auto which = [&] {
      return c10::str("parameter '", name_of(modules_, i), "' of a checkpointed block ");
    };
    TORCH_CHECK(look.tensor == first.tensor && look.data == first.data, which(),
                "was replaced or moved between the forward pass and backward. Do it before the "
                "forward pass, or after backward");
    TORCH_CHECK(look.version == first.version, which(),
                "was changed in place between the forward pass and backward (it is at version ",
                look.version, ", expected ", first.version, "). Step the optimizer after backward");
    TORCH_CHECK(look.requires_grad == first.requires_grad, which(),
                look.requires_grad ? "began" : "ceased",
                " to require a gradient between the forward pass and backward. Freeze parameters "
                "before the forward pass, or after backward");
  }
}

BlockState::Rewind::Rewind(const BlockState& state) {
  now_.reserve(state.buffers_.size());
  for (const auto& buffer : state.buffers_)
    now_.emplace_back(buffer.tensor, copy_of(buffer.tensor));
  for (const auto& buffer : state.buffers_) write_unseen(buffer.tensor, buffer.before);
}

BlockState::Rewind::~Rewind() {
  try {
    for (const auto& [buffer, values] : now_) write_unseen(buffer, values);
  } catch (const std::exception& error) {
    TORCH_WARN("the buffers of a checkpointed block could not be restored: ", error.what());
  }
}

}  // namespace torchlore::memory
