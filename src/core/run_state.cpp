#include "torchlore/core/run_state.hpp"

#include <ATen/ops/scalar_tensor.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <ctime>
#include <sstream>
#include <utility>
#include <vector>

#include "component_checks.hpp"
#include "run_folder.hpp"
#include "torchlore/core/error.hpp"
#include "torchlore/core/module_state.hpp"
#include "torchlore/core/optimizer_state.hpp"
#include "torchlore/core/rng.hpp"
#include "torchlore/core/tensor_file.hpp"

namespace torchlore {
namespace {

namespace fs = std::filesystem;
using detail::Differences;

constexpr const char* kFormat = "torchlore.run";
constexpr const char* kFormatVersion = "1";

/// One object of a run. `load` comes after a `check` that found nothing.
struct Component {
  std::string name;
  std::function<StateDict()> state;
  std::function<void(const StateDict&, Differences&)> check;
  std::function<void(const StateDict&)> load;
  bool may_throw = false;  ///< `load` is the user's code, so its effect must be undone if it throws
};

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts = {};
  gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

Metadata metadata_of(int64_t number, const std::vector<Component>& components) {
  std::string objects;
  for (const auto& component : components) objects += component.name + "/";
  return {{"format", kFormat},  {"format_version", kFormatVersion},
          {"objects", objects}, {"step", std::to_string(number)},
          {"time", utc_now()},  {"torchlore_version", TORCHLORE_VERSION}};
}

/// The random generators of all devices. A run may go on with other accelerators than it was saved
/// with: the generators that are here both times are restored.
StateDict common_generators(const StateDict& saved) {
  auto here = RngState::capture().state_dict();
  StateDict common;
  for (const auto& [device, state] : saved) {
    if (here.contains(device)) common.emplace(device, state);
  }
  return common;
}

Component rng_component() {
  const auto check = [](const StateDict& saved, Differences& differences) {
    const auto common = common_generators(saved);
    StateDict here;
    for (const auto& [device, state] : RngState::capture().state_dict()) {
      if (device == "cpu" || common.contains(device)) here.emplace(device, state);
    }
    detail::compare_states(here, common, differences);
  };
  const auto load = [](const StateDict& saved) {
    RngState state;
    state.load_state_dict(common_generators(saved));
    state.restore();
  };
  return {"rng", [] { return RngState::capture().state_dict(); }, check, load, /*may_throw=*/true};
}

/// Opens a run file, or says what to do about one that cannot be used.
TensorFile open_run_file(const fs::path& path) {
  const auto fail = [&](const std::string& reason) {
    TORCH_CHECK_VALUE(false, "cannot resume from '", path.string(), "': ", reason,
                      "; remove or repair the file to resume from the one before it");
  };
  std::optional<TensorFile> file;
  try {
    file = TensorFile::open(path);
  } catch (const c10::Error& error) {
    fail(error.what_without_backtrace());
  }
  const auto& metadata = file->metadata();
  const auto format = metadata.find("format");
  if (format == metadata.end() || format->second != kFormat)
    fail("it is not a run file of torchlore");
  const auto version = metadata.find("format_version");
  if (version == metadata.end() || version->second != kFormatVersion) {
    fail("it has a format version that this torchlore cannot read, " +
         (version == metadata.end() ? "none" : version->second));
  }
  return *file;
}

using Sections = std::map<std::string, StateDict>;

/// The tensors of a file by component; one without any state is there too.
Sections sections_of(const TensorFile& file) {
  Sections sections;
  const auto objects = file.metadata().find("objects");
  std::istringstream names(objects == file.metadata().end() ? "" : objects->second);
  for (std::string name; std::getline(names, name, '/');) sections[name];
  for (auto& [key, tensor] : file.tensors()) {
    const auto slash = key.find('/');
    const bool named = slash != std::string::npos;
    sections[key.substr(0, slash)].emplace(named ? key.substr(slash + 1) : "", tensor);
  }
  return sections;
}

StateDict copy_of(const StateDict& state) {
  StateDict copy;
  for (const auto& [key, tensor] : state) copy.emplace(key, tensor.clone());
  return copy;
}

/// Loads all of `components`, or none: what was loaded before a throw gets its old state back.
void load_or_undo(const std::vector<const Component*>& components, const Sections& sections) {
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
    add(rng_component());
  }

  void add(Component component) {
    TORCH_CHECK_VALUE(!resumed, "'", component.name,
                      "' was added after resume() and would start anew; add everything first");
    const auto& name = component.name;
    TORCH_CHECK_VALUE(
        !name.empty() && name.find('/') == std::string::npos && name != "__metadata__",
        "a name of a run's object must not be empty or contain '/', but is '", name, "'");
    for (const auto& other : components) {
      TORCH_CHECK_VALUE(other.name != name, "'", name,
                        "' names two objects of the run; give each a name of its own");
    }
    components.push_back(std::move(component));
  }

  /// One 0-d value of the loop.
  template <typename T>
  void add_value(const std::string& name, T& value, at::ScalarType dtype) {
    const auto state = [&value, dtype] {
      return StateDict{{"value", at::scalar_tensor(value, at::TensorOptions(dtype))}};
    };
    const auto check = [state](const StateDict& saved, Differences& differences) {
      detail::compare_states(state(), saved, differences);
    };
    const auto load = [&value](const StateDict& saved) { value = saved.at("value").item<T>(); };
    add({name, state, check, load});
  }

  /// Finds all that does not fit; throws if there is anything.
  void check(const Sections& sections, const fs::path& path) const;
  void load(const Sections& sections) const;

  fs::path folder;
  RunStateOptions options;
  std::optional<detail::FolderLock> lock;
  std::vector<Component> components;
  bool resumed = false;     ///< `resume()` has run
  bool owns_files = false;  ///< the files in the folder are this run's
};

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
  std::vector<const Component*> unsure;
  std::vector<const Component*> sure;
  for (const auto& component : components)
    (component.may_throw ? unsure : sure).push_back(&component);
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
  module_state_dict(module);  // refuses what could be saved but not restored
  impl_->add({name, [&module] { return module_state_dict(module); },
              [&module](const StateDict& saved, Differences& differences) {
                detail::check_module_state(module, saved, differences);
              },
              [&module](const StateDict& saved) { detail::apply_module_state(module, saved); }});
  return *this;
}

RunState& RunState::add(const std::string& name, torch::optim::Optimizer& optimizer,
                        const torch::nn::Module& model) {
  optimizer_state_dict(optimizer, model);  // refuses what cannot be saved
  impl_->add(
      {name, [&] { return optimizer_state_dict(optimizer, model); },
       [&](const StateDict& saved, Differences& differences) {
         detail::check_optimizer_state(optimizer, model, saved, differences);
       },
       [&](const StateDict& saved) { detail::apply_optimizer_state(optimizer, model, saved); }});
  return *this;
}

RunState& RunState::add(const std::string& name, at::Tensor& tensor) {
  TORCH_CHECK_VALUE(tensor.defined(), "the tensor '", name,
                    "' is undefined; give it a value first");
  const auto state = [&tensor] { return StateDict{{"value", tensor.detach()}}; };
  impl_->add({name, state,
              [state](const StateDict& saved, Differences& differences) {
                detail::compare_states(state(), saved, differences);
              },
              [state](const StateDict& saved) {
                const c10::NoGradGuard no_grad;
                state().at("value").copy_(saved.at("value"));
              }});
  return *this;
}

RunState& RunState::add(const std::string& name, int64_t& value) {
  impl_->add_value(name, value, at::kLong);
  return *this;
}

RunState& RunState::add(const std::string& name, double& value) {
  impl_->add_value(name, value, at::kDouble);
  return *this;
}

RunState& RunState::add(const std::string& name, bool& value) {
  impl_->add_value(name, value, at::kBool);
  return *this;
}

RunState& RunState::add(const std::string& name, std::string& value) {
  impl_->add({name,
              [&value] {
                return StateDict{{"text", detail::text_tensor(value)}};
              },
              [](const StateDict& saved, Differences& differences) {
                const auto text = saved.find("text");
                // A text may have any length.
                const auto here = text == saved.end() ? detail::text_tensor("") : text->second;
                detail::compare_states({{"text", here.to(at::kByte)}}, saved, differences);
              },
              [&value](const StateDict& saved) { value = detail::tensor_text(saved.at("text")); }});
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
    const auto sections = sections_of(open_run_file(path));
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
  StateDict all;
  for (const auto& component : impl_->components) {
    for (auto& [key, tensor] : component.state()) all.emplace(component.name + "/" + key, tensor);
  }
  const auto path = detail::run_file(impl_->folder, step);
  write_tensors(path, all, metadata_of(step, impl_->components));
  impl_->owns_files = true;
  detail::remove_old_run_files(impl_->folder, impl_->options.keep);
  return path;
}

std::optional<RunInfo> newest_run(const fs::path& folder) {
  const auto files = detail::run_files(folder);
  if (files.empty()) return std::nullopt;
  const auto& [number, path] = *files.rbegin();
  const auto file = open_run_file(path);
  const auto text = [&](const char* key) {
    const auto found = file.metadata().find(key);
    return found == file.metadata().end() ? std::string() : found->second;
  };
  return RunInfo{path, number, text("time"), text("torchlore_version")};
}

}  // namespace torchlore
