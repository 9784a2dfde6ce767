#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace torch::nn {
class Module;
}

namespace torchlore {

/// Which part of which parameter a tensor is.
struct ParameterUse {
  /// The parameter's names, several if it is tied; they live as long as the index, until `refresh`.
  c10::ArrayRef<std::string> names = {};
  at::Tensor parameter = {};  ///< the parameter itself
  int64_t offset = 0;         ///< first element used, in the parameter's memory order
  int64_t extent = 0;         ///< elements from the first to the last one used
  bool whole = false;         ///< every element is used
  bool buffer = false;        ///< it is a buffer
  /// It is a copy (`to`, `clone`, `contiguous`) that autograd recorded, as autocast makes.
  bool copy = false;

  /// The first name.
  const std::string& name() const { return names.front(); }
};

/// Settings of a `ParameterIndex`.
struct ParameterIndexOptions {
  bool buffers = false;  ///< buffers of the module, too
};

/// Tells which named parameter an op's argument is.
///
/// ```cpp
/// torchlore::ParameterIndex parameters(*model);
/// at::Tensor addmm(…, const at::Tensor& b, …) override {
///   if (const auto use = parameters.find(b)) std::cout << use->name() << '\n';   // "fc.weight"
///   …
/// }
/// ```
/// It knows a parameter by its place in memory: through `w.t()`, `view`, `expand`, `detach`, and by
/// part through `narrow` and `chunk` (the last of three blocks of n elements of a packed weight has
/// offset 2 n and extent n). It knows a copy by its autograd graph, if nothing on the way from the
/// parameter computes. It never guesses: a copy made without gradients (`no_grad`, a frozen
/// parameter, inference mode), one of a part, or a part of one that moved elements, is no one's.
///
/// The index keeps the parameters alive. It may be used from several threads at once.
/// @note `model->to(…)` and `set_data` give parameters new memory: `refresh` after them. An index
///       that is out of date says so when it meets such a parameter. A parameter that was put in
///       another's place (`layer->weight = …`) is a new one; make a new index.
/// @note `find` is O(log n), n the number of parameters in one storage (mostly 1); one that lies
///       inside another is found first. Host syncs: 0.
class ParameterIndex {
 public:
  /// The parameters of the module and its submodules, as `named_parameters` names them.
  explicit ParameterIndex(const torch::nn::Module& module,
                          const ParameterIndexOptions& options = {});
  /// Parameters by name, of a model that is no module. Equal tensors are tied.
  explicit ParameterIndex(const std::vector<std::pair<std::string, at::Tensor>>& named);

  /// The parameter that the tensor is, or a part of, or a copy of; nothing if it is none, or is not
  /// known to be one.
  /// @throws c10::Error if the parameter has other memory than when the index was made.
  std::optional<ParameterUse> find(const at::Tensor& tensor) const;

  /// Whether a parameter has other memory than when the index was made. O(n).
  bool stale() const;
  /// Takes the parameters as they are now.
  void refresh();

  /// Number of parameters, tied ones counted once.
  size_t size() const;

 private:
  struct State;
  std::shared_ptr<const State> state_;
};

}  // namespace torchlore
