#include <ATen/autocast_mode.h>
#include <ATen/core/List.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/edge.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/variable.h>

#include <type_traits>

#include "../../intercept/hook_factory.hpp"
#include "each_tensor.hpp"
#include "replay.hpp"

namespace torchlore::budget {
namespace {

namespace ag = torch::autograd;

/// What the tensors of a replay seem to come from: an op may write in place into what requires
/// grad, but not into a leaf. The graph that a replay makes is never run.
struct Source final : ag::Node {
  ag::variable_list apply(ag::variable_list&& /*gradients*/) override {
    TORCH_INTERNAL_ASSERT(false, "the graph of a replay was run");
  }
};

/// Nodes are held by std::shared_ptr up to LibTorch 2.10 and by c10::intrusive_ptr from then on.
template <typename Pointer>
Pointer make_source() {
  if constexpr (std::is_same_v<Pointer, std::shared_ptr<ag::Node>>) {
    return std::make_shared<Source>();
  } else {
    return Pointer(c10::make_intrusive<Source>());
  }
}

void require_grad(const at::Tensor& tensor) {
  thread_local const auto source = make_source<decltype(ag::Edge::function)>();
  ag::impl::set_gradient_edge(tensor, ag::Edge(source, 0));
}

/// Collects the tensors that autograd saves.
class Collector final : public intercept::HookFactory {
 public:
  explicit Collector(c10::SmallVectorImpl<c10::Storage>& saves) : saves_(saves) {}
  std::unique_ptr<ag::SavedVariableHooks> hooks() override {
    return std::make_unique<Hook>(saves_);
  }
  std::unique_ptr<PackedTensor> pack(const at::Tensor& /*tensor*/) override { return nullptr; }

 private:
  class Hook final : public ag::SavedVariableHooks {
   public:
    explicit Hook(c10::SmallVectorImpl<c10::Storage>& saves) : saves_(saves) {}
    void call_pack_hook(const at::Tensor& tensor) override {
      saves_.push_back(is_plain(tensor) ? tensor.storage() : c10::Storage());
    }
    at::Tensor call_unpack_hook() override {
      TORCH_INTERNAL_ASSERT(false, "the graph of a replay was run");
    }

   private:
    c10::SmallVectorImpl<c10::Storage>& saves_;
  };
  c10::SmallVectorImpl<c10::Storage>& saves_;
};

/// The thread's state as it was when the op ran.
class Surroundings {
 public:
  Surroundings(const Record& record, bool with_saves)
      : keys_(keys(record, with_saves)),
        grad_(record.grad_mode),
        device_(record.device),
        autocast_(at::autocast::get_autocast_dtype(device_)),
        cache_(at::autocast::is_autocast_cache_enabled()) {
    // A cached cast may be of a parameter's later bytes.
    at::autocast::set_autocast_cache_enabled(false);
    if (record.autocast) at::autocast::set_autocast_dtype(device_, *record.autocast);
  }
  ~Surroundings() {
    at::autocast::set_autocast_dtype(device_, autocast_);
    at::autocast::set_autocast_cache_enabled(cache_);
  }
  Surroundings(const Surroundings&) = delete;
  Surroundings(Surroundings&&) = delete;
  Surroundings& operator=(const Surroundings&) = delete;
  Surroundings& operator=(Surroundings&&) = delete;

 private:
  static c10::impl::LocalDispatchKeySet keys(const Record& record, bool with_saves) {
    auto keys = record.keys;
    if (!with_saves) {
      keys.excluded_ = keys.excluded_ | c10::autograd_dispatch_keyset_with_ADInplaceOrView;
    }
    return keys;
  }

  c10::impl::ForceDispatchKeyGuard keys_;
  at::AutoGradMode grad_;
  c10::DeviceType device_;
  c10::ScalarType autocast_;
  bool cache_;
};

at::Tensor tensor_of(const Input& input, const c10::Storage& bytes, bool grad_mode) {
  at::Tensor tensor;
  if (input.other.defined()) {
    const at::NoGradGuard no_grad;
    TORCH_CHECK(input.other.is_inference() || input.other._version() == input.other_version,
                "ActivationBudget: a ", input.other.layout(), " tensor of shape ",
                input.other.sizes(),
                " that backward needs was changed in place after the forward pass read it. Change "
                "it after backward, or change a copy");
    tensor = input.other.detach();
  } else {
    tensor = input.view.over(bytes);
  }
  if (grad_mode && input.requires_grad) require_grad(tensor);
  return tensor;
}

/// A list of tensors, some of which may be absent.
c10::IValue empty_list(bool optional, int64_t size) {
  const auto length = static_cast<size_t>(size);
  if (optional) {
    c10::List<std::optional<at::Tensor>> list;
    list.resize(length, std::nullopt);
    return list;
  }
  c10::List<at::Tensor> list;
  list.resize(length, at::Tensor());
  return list;
}

torch::jit::Stack stack_of(const Record& record, const c10::SmallVectorImpl<c10::Storage>& inputs) {
  torch::jit::Stack stack(record.arguments.begin(), record.arguments.end());
  for (const auto& argument : record.facts->tensors) {
    auto& value = stack[argument.index];
    if (value.isInt()) value = empty_list(argument.optional, value.toInt());
  }
  for (auto& value : stack) {
    if (value.isGenerator()) value = value.toGenerator().clone();
  }
  for (size_t i = 0; i < record.inputs.size(); ++i) {
    const auto& input = record.inputs[i];
    auto& value = stack[input.argument];
    auto tensor = tensor_of(input, inputs[i], record.grad_mode);
    if (input.element < 0) {
      value = std::move(tensor);
    } else if (value.isTensorList()) {
      value.toTensorList().set(static_cast<size_t>(input.element), std::move(tensor));
    } else {
      value.toOptionalTensorList().set(static_cast<size_t>(input.element), std::move(tensor));
    }
  }
  return stack;
}

}  // namespace

Replayed run_again(const Record& record, const c10::SmallVectorImpl<c10::Storage>& inputs,
                   bool with_saves) {
  // Others may have nothing but an autograd kernel.
  with_saves |= !record.facts->aten;
  Replayed replayed;
  auto stack = stack_of(record, inputs);
  {
    std::optional<SavedTensorScope> collect;
    if (with_saves) collect.emplace(std::make_shared<Collector>(replayed.saves));
    const RandomScope random(record.random.get());
    const Surroundings same(record, with_saves);
    record.facts->op.callBoxed(stack);
  }
  const auto saves = static_cast<int64_t>(replayed.saves.size());
  TORCH_CHECK(!with_saves || record.saves < 0 || saves == record.saves,
              "ActivationBudget: ", record.facts->op.schema().name(), " saved ", record.saves,
              " tensors in the forward pass but ", saves,
              " when it was run again; it is not a function of its arguments");
  for (const auto& result : stack) {
    each_tensor(result, [&](const at::Tensor& tensor, int32_t) {
      replayed.results.push_back(is_plain(tensor) ? tensor.storage() : c10::Storage());
    });
  }
  return replayed;
}

}  // namespace torchlore::budget
