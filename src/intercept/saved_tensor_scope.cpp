#include "torchlore/intercept/saved_tensor_scope.hpp"

#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/saved_variable_hooks.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <typeinfo>
#include <vector>

#include "frame.hpp"
#include "hook_factory.hpp"
#include "torchlore/intercept/op_mode.hpp"

namespace torchlore {

namespace ag = torch::autograd;

PackedTensor::~PackedTensor() = default;
SavedTensorHandler::~SavedTensorHandler() = default;

/// One scope, and the scopes around it.
struct SavedTensorScope::Level {
  std::shared_ptr<SavedTensorHandler> handler;
  Level* outer;
  std::atomic<bool> open = true;  // false: destroyed on another thread, so still in the chain
  intercept::HookFactory* factory = dynamic_cast<intercept::HookFactory*>(handler.get());
};

namespace {

/// A tensor that no handler took.
class Kept final : public PackedTensor {
 public:
  explicit Kept(const at::Tensor& tensor) : tensor_(tensor.detach()), version_(tensor._version()) {}
  at::Tensor unpack() override {
    TORCH_CHECK(tensor_._version() == version_,
                "one of the variables needed for gradient computation has been modified by an "
                "inplace operation: [",
                tensor_.toString(), " ", tensor_.sizes(), "] is at version ", tensor_._version(),
                "; expected version ", version_,
                " instead. Change it out of place, or after backward");
    return tensor_;
  }

 private:
  at::Tensor tensor_;
  int64_t version_;
};

}  // namespace

struct SavedTensorAccess {
  using Level = SavedTensorScope::Level;
  static thread_local Level* innermost;

  /// Makes `level` the innermost while in scope.
  struct Within {
    explicit Within(Level* level) : previous(innermost) { innermost = level; }
    ~Within() { innermost = previous; }
    Within(const Within&) = delete;
    Within(Within&&) = delete;
    Within& operator=(const Within&) = delete;
    Within& operator=(Within&&) = delete;
    Level* previous;
  };

  static std::unique_ptr<PackedTensor> pack(Level* level, const at::Tensor& tensor) {
    for (; level != nullptr; level = level->outer) {
      if (!level->open) continue;
      const Within around(level->outer);
      const auto handler = level->handler;  // it may end its own scope
      if (auto packed = handler->pack(tensor)) return packed;
    }
    return std::make_unique<Kept>(tensor);
  }
};

thread_local SavedTensorAccess::Level* SavedTensorAccess::innermost = nullptr;

namespace {

/// What autograd calls for one tensor it saves.
class Hooks final : public ag::SavedVariableHooks {
 public:
  void call_pack_hook(const at::Tensor& tensor) override {
    packed_ = SavedTensorScope::save(tensor);
  }
  at::Tensor call_unpack_hook() override {
    const at::NoGradGuard no_grad;
    const intercept::Hidden hidden;
    return packed_->unpack();
  }

 private:
  std::unique_ptr<PackedTensor> packed_;
};

/// LibTorch's engine, asked by every op that saves tensors.
class Engine final : public ag::Engine {
 public:
  std::unique_ptr<ag::SavedVariableHooks> get_default_saved_variable_hooks() override {
    const auto* level = SavedTensorAccess::innermost;
    if (level == nullptr) return nullptr;
    if (level->factory != nullptr && level->open) {
      if (auto hooks = level->factory->hooks()) return hooks;
    }
    return std::make_unique<Hooks>();
  }
};

ag::Engine& our_engine() {
  // Never destroyed: LibTorch's threads may use it until the process ends.
  static auto* engine = new Engine;
  return *engine;
}

/// Puts our engine in the default's place, once.
void install_engine() {
  auto& engine = ag::Engine::get_default_engine();
  if (&engine == &our_engine()) return;
  TORCH_CHECK(typeid(engine) == typeid(ag::Engine),
              "torchlore's SavedTensorScope needs LibTorch's own autograd engine, but this process "
              "runs another one (Python's torch brings its own); use it in programs without it");
  ag::set_default_engine_stub(&our_engine);
}

}  // namespace

namespace intercept {

const SavedTensorHandler* innermost_saved_tensor_handler() {
  const auto* level = SavedTensorAccess::innermost;
  return level == nullptr ? nullptr : level->handler.get();
}

Hidden::Hidden() : frame_(innermost), level_(SavedTensorAccess::innermost) {
  set_innermost(nullptr);
  SavedTensorAccess::innermost = nullptr;
}

Hidden::~Hidden() {
  SavedTensorAccess::innermost = static_cast<SavedTensorAccess::Level*>(level_);
  set_innermost(frame_);
}

}  // namespace intercept

SavedTensorScope::SavedTensorScope(std::shared_ptr<SavedTensorHandler> handler) {
  TORCH_CHECK_VALUE(handler != nullptr, "SavedTensorScope was given a null handler");
  install_engine();
  level_ = std::make_unique<Level>(std::move(handler), SavedTensorAccess::innermost, true);
  SavedTensorAccess::innermost = level_.get();
}

namespace {

/// Misuse is rare; what it leaves behind stays reachable, so that nobody takes it for a leak.
template <typename T>
void keep_for_ever(std::unique_ptr<T> object) {
  static auto* const mutex = new std::mutex;
  static auto* const kept = new std::vector<std::unique_ptr<T>>;
  const std::lock_guard lock(*mutex);
  kept->push_back(std::move(object));
}

}  // namespace

SavedTensorScope::~SavedTensorScope() {
  for (auto* level = SavedTensorAccess::innermost; level != nullptr; level = level->outer) {
    if (level != level_.get()) continue;
    if (level != SavedTensorAccess::innermost) {
      TORCH_WARN(
          "a SavedTensorScope was destroyed before a scope inside it; both have ended. End scopes "
          "innermost first");
    }
    SavedTensorAccess::innermost = level->outer;
    return;
  }
  TORCH_WARN(
      "a SavedTensorScope was destroyed on another thread than its own, or after the scope around "
      "it; its handler is no longer asked. End scopes on their thread, innermost first");
  level_->open = false;
  keep_for_ever(std::move(level_));  // its own thread may still come by
}

std::unique_ptr<PackedTensor> SavedTensorScope::save(const at::Tensor& tensor) {
  const at::NoGradGuard no_grad;
  const OpModeGuard hidden{OpModeState()};
  return SavedTensorAccess::pack(SavedTensorAccess::innermost, tensor);
}

}  // namespace torchlore
