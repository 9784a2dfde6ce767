#include "torchlore/core/run_state.hpp"

#include <c10/util/Exception.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "run_components.hpp"
#include "run_file.hpp"
#include "run_folder.hpp"
#include "torchlore/core/error.hpp"

namespace torchlore {
namespace {

namespace fs = std::filesystem;
using detail::Differences;
using detail::RunComponent;
using detail::Sections;

StateDict copy_of(const StateDict& state) {
  StateDict copy;
  for (const auto& [key, tensor] : state) copy.emplace(key, tensor.clone());
  return copy;
}

/// Loads all of `components`, or none: what was loaded before a throw gets its old state back.
void load_or_undo(const std::vector<const RunComponent*>& components, const Sections& sections) {
  std::vector<StateDict> before;
  try {
    for (const auto* component : components) {
      before.push_back(copy_of(component->state()));
      component->load(sections.at(component->name));
    }
  } catch (...) {
    for (size_t i = 0; i < before.size(); ++i) components[i]->load(before[i]);
    throw;
  }
}

}  // namespace

struct RunState::Impl {
  Impl(fs::path path, const RunStateOptions& opts) : folder(std::move(path)), options(opts) {
    check_count("RunStateOptions::keep", options.keep);
    lock.emplace(folder);
    add(detail::rng_component());
  }

  void add(RunComponent component);
  /// Finds all that does not fit; throws if there is anything.
  void check(const Sections& sections, const fs::path& path) const;
  void load(const Sections& sections) const;

  fs::path folder;
  RunStateOptions options;
  std::optional<detail::FolderLock> lock;
  std::vector<RunComponent> components;
  bool resumed = false;     ///< `resume()` has run
  bool owns_files = false;  ///< the files in the folder are this run's
};

void RunState::Impl::add(RunComponent component) {
  const auto& name = component.name;
  TORCH_CHECK_VALUE(!name.empty() && name.find('/') == std::string::npos,
                    "a name of a run's object must not be empty or contain '/', but is '", name,
                    "'");
  for (const auto& other : components) {
    TORCH_CHECK_VALUE(other.name != name, "'", name,
                      "' names two objects of the run; give each a name of its own");
  }
  TORCH_CHECK_VALUE(!resumed, "'", name,
                    "' was added after resume() and would start anew; add everything first");
  components.push_back(std::move(component));
}

void RunState::Impl::check(const Sections& sections, const fs::path& path) const {
  Differences all;
  auto unknown = sections;
  for (const auto& component : components) {
    const auto found = sections.find(component.name);
    if (found == sections.end()) {
      all.missing(component.name);
      continue;
    }
    unknown.erase(component.name);
    Differences differences;
    component.check(found->second, differences);
    all.append(component.name + "/", differences);
  }
  for (const auto& [name, state] : unknown) all.unexpected(name);
  TORCH_CHECK_VALUE(all.empty(), "the run file '", path.string(),
                    "' does not fit what was added, and nothing was changed; ", all.text(),
                    "\nAdd the objects it was saved from, or choose another folder");
}

void RunState::Impl::load(const Sections& sections) const {
  std::vector<const RunComponent*> unsure;
  std::vector<const RunComponent*> sure;
  for (const auto& component : components) {
    (component.may_throw ? unsure : sure).push_back(&component);
  }
  // The generators were added first; they come last, as a user's load may draw from them.
  std::rotate(unsure.begin(), unsure.begin() + 1, unsure.end());
  load_or_undo(unsure, sections);
  for (const auto* component : sure) component->load(sections.at(component->name));
}

RunState::RunState(fs::path folder, RunStateOptions options)
    : impl_(std::make_unique<Impl>(std::move(folder), options)) {}
RunState::RunState(RunState&&) noexcept = default;
RunState& RunState::operator=(RunState&&) noexcept = default;
RunState::~RunState() = default;

RunState& RunState::add(const std::string& name, torch::nn::Module& module) {
  impl_->add(detail::module_component(name, module));
  return *this;
}

RunState& RunState::add(const std::string& name, torch::optim::Optimizer& optimizer,
                        const torch::nn::Module& model) {
  impl_->add(detail::optimizer_component(name, optimizer, model));
  return *this;
}

RunState& RunState::add(const std::string& name, at::Tensor& tensor) {
  impl_->add(detail::tensor_component(name, tensor));
  return *this;
}

RunState& RunState::add(const std::string& name, int64_t& value) {
  impl_->add(detail::value_component(name, value));
  return *this;
}

RunState& RunState::add(const std::string& name, double& value) {
  impl_->add(detail::value_component(name, value));
  return *this;
}

RunState& RunState::add(const std::string& name, bool& value) {
  impl_->add(detail::value_component(name, value));
  return *this;
}

RunState& RunState::add(const std::string& name, std::string& value) {
  impl_->add(detail::value_component(name, value));
  return *this;
}

RunState& RunState::add_object(const std::string& name, std::function<StateDict()> state,
                               std::function<void(const StateDict&)> load, StateLayout layout) {
  const auto check = [state, layout](const StateDict& saved, Differences& differences) {
    if (layout == StateLayout::fixed) detail::compare_states(state(), saved, differences);
  };
  impl_->add({name, std::move(state), check, std::move(load), /*may_throw=*/true});
  return *this;
}

bool RunState::resume() {
  const auto files = detail::run_files(impl_->folder);
  if (!files.empty()) {
    const auto& path = files.rbegin()->second;
    const auto sections = detail::sections_of(detail::open_run_file(path));
    impl_->check(sections, path);
    impl_->load(sections);
  }
  impl_->resumed = true;
  impl_->owns_files = true;
  return !files.empty();
}

fs::path RunState::save() {
  const auto files = detail::run_files(impl_->folder);
  return save(files.empty() ? 1 : files.rbegin()->first + 1);
}

fs::path RunState::save(int64_t step) {
  TORCH_CHECK_VALUE(step >= 0, "step must be 0 or more, but is ", step);
  const auto files = detail::run_files(impl_->folder);
  if (!files.empty()) {
    const auto& [newest, path] = *files.rbegin();
    TORCH_CHECK_VALUE(impl_->owns_files, "'", path.string(),
                      "' is of an earlier run; call resume() before the first save(), or choose "
                      "another folder");
    TORCH_CHECK_VALUE(step >= newest, "step must not lie below the newest file's, ", newest,
                      ", but is ", step);
  }
  Sections sections;
  for (const auto& component : impl_->components) {
    sections.emplace(component.name, component.state());
  }
  const auto path = detail::run_file(impl_->folder, step);
  detail::write_run_file(path, step, sections);
  impl_->owns_files = true;
  detail::remove_old_run_files(impl_->folder, impl_->options.keep);
  return path;
}

std::optional<RunInfo> newest_run(const fs::path& folder) {
  const auto files = detail::run_files(folder);
  if (files.empty()) return std::nullopt;
  const auto& [number, path] = *files.rbegin();
  const auto file = detail::open_run_file(path);
  return RunInfo{path, number, detail::metadata_text(file, "time"),
                 detail::metadata_text(file, "torchlore_version")};
}

}  // namespace torchlore
