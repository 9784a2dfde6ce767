#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <vector>

namespace torchlore::budget {

/// One argument that may hold tensors.
struct TensorArgument {
  size_t index = 0;
  bool written = false;     // the schema says so
  bool optional = false;    // a list's elements may be absent
  bool statistics = false;  // a running statistic that the op updates without saying so
};

/// What a schema says of its op, looked up once.
struct OpFacts {
  explicit OpFacts(const c10::OperatorHandle& handle);
  static const OpFacts& of(const c10::OperatorHandle& handle);

  c10::OperatorHandle op;
  std::vector<TensorArgument> tensors;
  c10::DispatchKeySet autocast;  // the devices' autocast that has a kernel of its own for the op
  size_t arguments = 0;
  size_t results = 0;
  std::ptrdiff_t training_argument = -1;  // of a norm: whether it updates its statistics
  std::ptrdiff_t state_argument =
      -1;                   // of a recurrent layer: cuDNN's dropout state, changed in secret
  bool composite = false;   // made of other ops
  bool makes_bytes = true;  // false: only views, or no tensor at all
  bool writes = false;
  bool random = false;
  bool aten = false;
  bool known = false;  // LibTorch's own or ours: a function of its arguments and of the generators
};

}  // namespace torchlore::budget
