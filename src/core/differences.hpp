#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "torchlore/core/state_dict.hpp"

namespace torchlore::detail {

/// What keeps a saved state from fitting the objects it should be loaded into. Everything is
/// collected first, so that one message names it all and nothing has been changed by then.
class Differences {
 public:
  void add(const std::string& key, const std::string& what) { lines_.push_back(key + ": " + what); }
  void missing(const std::string& key) { add(key, "missing in the saved state"); }
  void unexpected(const std::string& key) { add(key, "only in the saved state"); }
  /// Takes over all of `other`, each key behind `prefix`.
  void append(const std::string& prefix, const Differences& other);

  bool empty() const { return lines_.empty(); }
  /// "2 differences:" and one line each; the lines after the tenth are only counted.
  std::string text() const;

 private:
  std::vector<std::string> lines_;
};

/// Shape and dtype of one tensor.
void compare_tensor(const std::string& key, const at::Tensor& here, const at::Tensor& saved,
                    Differences& differences);
/// Keys, shapes and dtypes.
void compare_states(const StateDict& here, const StateDict& saved, Differences& differences);

/// Throws c10::ValueError if there are differences; `what` names the object, as in "the module".
void check_fits(const Differences& differences, const std::string& what);

/// Text as a tensor of its bytes, and back.
at::Tensor text_tensor(const std::string& text);
std::string tensor_text(const at::Tensor& bytes);

}  // namespace torchlore::detail
