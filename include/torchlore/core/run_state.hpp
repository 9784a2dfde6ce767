#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "torchlore/core/state_dict.hpp"

namespace torch::nn {
class Module;
}
namespace torch::optim {
class Optimizer;
}

namespace torchlore {

/// Options of `RunState`.
struct RunStateOptions {
  int64_t keep = 3;  ///< how many of the newest files stay in the folder; 1 or more
};

/// Whether two states of one object always have the same keys, shapes and dtypes.
enum class StateLayout {
  fixed,   ///< yes: a saved state that differs in them is refused before anything is loaded
  changes  ///< no (a history that grows): only the object's own `load_state_dict` checks it
};

/// The layout of a type's state: `fixed`, unless the type says `static constexpr bool
/// state_layout_changes = true;`.
template <typename T>
constexpr StateLayout state_layout_of() {
  if constexpr (requires { requires T::state_layout_changes; }) return StateLayout::changes;
  return StateLayout::fixed;
}

/// Everything that a training run needs to go on as if it had never stopped, in one safetensors
/// file per save.
///
/// A file is written whole or not at all, so a run may be killed at any instant; what `resume()`
/// then loads continues bit for bit, given that everything the loop depends on was added. The
/// random generators of all devices are always saved.
/// ```cpp
/// torchlore::RunState run("runs/a", {.keep = 3});
/// int64_t step = 0;
/// run.add("model", *model).add("optimizer", optimizer, *model);
/// run.add("sampler", sampler).add("step", step);
/// run.resume();                           // false when there is nothing to resume
/// while (step < steps) {
///   train(step++);
///   if (step % 100 == 0) run.save();
/// }
/// ```
/// What is added is kept by reference and must outlive the RunState. One folder belongs to one run
/// and, while a RunState lives, to one process (held by a lock that ends with the process). With
/// several ranks each has a folder of its own.
class RunState {
 public:
  /// Opens the folder, makes it if needed, and locks it.
  /// @throws c10::ValueError if options.keep < 1, or the folder is in use by another RunState.
  /// @throws c10::Error if the folder cannot be made or written, with the system's reason.
  explicit RunState(std::filesystem::path folder, RunStateOptions options = {});
  RunState(RunState&&) noexcept;
  RunState& operator=(RunState&&) noexcept;
  RunState(const RunState&) = delete;
  RunState& operator=(const RunState&) = delete;
  ~RunState();

  /// Adds a module: parameters and buffers, restored in place; see `module_state_dict`.
  ///
  /// Of all forms of `add`:
  /// @param name names the object in the file: not empty, no '/', not "rng", and only once.
  /// @throws c10::ValueError for another name, or once `resume()` has run (the object would be left
  /// out).
  RunState& add(const std::string& name, torch::nn::Module& module);
  /// Adds an optimizer, its state keyed by the names that its parameters have in `model`; throws as
  /// `optimizer_state_dict`, right here.
  RunState& add(const std::string& name, torch::optim::Optimizer& optimizer,
                const torch::nn::Module& model);
  /// Adds a tensor, restored in place.
  RunState& add(const std::string& name, at::Tensor& tensor);
  /// Adds a variable of the loop.
  RunState& add(const std::string& name, int64_t& value);
  /// @overload
  RunState& add(const std::string& name, double& value);
  /// @overload
  RunState& add(const std::string& name, bool& value);
  /// @overload
  RunState& add(const std::string& name, std::string& value);
  /// Adds anything with `state_dict()` and `load_state_dict()`.
  template <Stateful T>
  RunState& add(const std::string& name, T& object, StateLayout layout = state_layout_of<T>()) {
    return add_object(
        name, [&object] { return StateDict(object.state_dict()); },
        [&object](const StateDict& state) { object.load_state_dict(state); }, layout);
  }

  /// Loads the newest file of the folder. Everything is checked first; after a throw nothing has
  /// changed.
  /// @return false if the folder has no file yet.
  /// @throws c10::ValueError if the file is damaged or not a run file, or does not fit what was
  ///         added, naming the differences (the first ten, and how many there are); and whatever an
  ///         object's own `load_state_dict` throws.
  bool resume();

  /// Writes a file numbered one above the newest (the first is 1), then removes all but the newest
  /// `keep`, and what a killed process left half-written.
  /// @return its path, `step-00000001.safetensors`.
  /// @throws c10::ValueError if the folder holds files and `resume()` was not called: they would be
  ///         lost to a run that does not continue them.
  /// @throws c10::Error if the file cannot be written (a full disk), with the system's reason; all
  ///         older files are still there.
  /// @note Host syncs: one per tensor on an accelerator. Returns when the file is on the disk.
  std::filesystem::path save();
  /// The same with a number of the caller's, for example the training step.
  /// @param step not below the newest file's; an equal one replaces that file.
  std::filesystem::path save(int64_t step);

 private:
  struct Impl;
  RunState& add_object(const std::string& name, std::function<StateDict()> state,
                       std::function<void(const StateDict&)> load, StateLayout layout);
  std::unique_ptr<Impl> impl_;
};

/// What a run file says about itself.
struct RunInfo {
  std::filesystem::path path = {};     ///< the file
  int64_t step = 0;                    ///< its number
  std::string time = {};               ///< when it was written, UTC, as 2026-01-31T12:00:00Z
  std::string torchlore_version = {};  ///< the version that wrote it
};

/// Reads what the newest file of a run folder says about itself; loads nothing and takes no lock.
/// @return nothing if the folder is not there or has no run file.
/// @throws c10::ValueError if the newest file is damaged or not a run file.
std::optional<RunInfo> newest_run(const std::filesystem::path& folder);

}  // namespace torchlore
