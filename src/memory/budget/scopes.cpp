#include "scopes.hpp"

#include <ATen/core/grad_mode.h>
#include <c10/core/InferenceMode.h>

#include "each_tensor.hpp"
#include "torchlore/intercept/op_call.hpp"

namespace torchlore::budget {
namespace {

namespace ag = torch::autograd;

/// A saved tensor, as both of autograd's hooks and the public interface hold it.
class Holder {
 public:
  explicit Holder(std::shared_ptr<State> state) : state_(std::move(state)) {}
  ~Holder() { state_->release(saved_); }
  Holder(const Holder&) = delete;
  Holder(Holder&&) = delete;
  Holder& operator=(const Holder&) = delete;
  Holder& operator=(Holder&&) = delete;

  void pack(const at::Tensor& tensor) { state_->pack(saved_, tensor); }
  at::Tensor unpack() {
    const auto alive = state_;  // the graph may go while its own node runs
    return alive->unpack(saved_);
  }

 private:
  std::shared_ptr<State> state_;
  Saved saved_;
};

class Hook final : public ag::SavedVariableHooks {
 public:
  explicit Hook(std::shared_ptr<State> state) : holder_(std::move(state)) {}
  void call_pack_hook(const at::Tensor& tensor) override {
    const at::NoGradGuard no_grad;
    holder_.pack(tensor);
  }
  at::Tensor call_unpack_hook() override {
    const at::NoGradGuard no_grad;
    const intercept::Hidden hidden;
    return holder_.unpack();
  }

 private:
  Holder holder_;
};

class Packed final : public PackedTensor {
 public:
  Packed(std::shared_ptr<State> state, const at::Tensor& tensor) : holder_(std::move(state)) {
    holder_.pack(tensor);
  }
  at::Tensor unpack() override { return holder_.unpack(); }

 private:
  Holder holder_;
};

/// Whether an autocast kernel would take the op: it casts the arguments and calls the op again.
bool is_autocast(const OpFacts& facts, const torch::jit::Stack& stack) {
  const auto active = facts.autocast - c10::impl::tls_local_dispatch_key_set().excluded_;
  if (active.empty()) return false;
  bool taken = false;
  for (const auto& argument : facts.tensors) {
    each_tensor(
        stack[stack.size() - facts.arguments + argument.index],
        [&](const at::Tensor& tensor, int32_t) { taken |= tensor.key_set().has_any(active); });
  }
  return taken;
}

}  // namespace

void Recorder::boxed(OpCall& call) {
  if (!state_->records_here() || c10::InferenceMode::is_enabled()) {
    call.run();
    return;
  }
  const auto& facts = OpFacts::of(call.op());
  // An op that autocast takes is a composite one too, of casts and of itself: recorded apart, a
  // dropped cast is computed again without the product that it was made for.
  if (facts.composite || is_autocast(facts, call.stack())) {
    call.pass_on();
  } else if (facts.makes_bytes) {
    state_->run(call, facts);
  } else {
    call.run();
  }
}

std::unique_ptr<ag::SavedVariableHooks> Saver::hooks() {
  if (!state_->records_here()) return nullptr;
  return std::make_unique<Hook>(state_);
}

std::unique_ptr<PackedTensor> Saver::pack(const at::Tensor& tensor) {
  if (!state_->records_here()) return nullptr;
  return std::make_unique<Packed>(state_, tensor);
}

bool saves_come_to(const State& state) {
  const auto* saver = dynamic_cast<const Saver*>(intercept::innermost_saved_tensor_handler());
  return saver != nullptr && saver->state() == &state;
}

}  // namespace torchlore::budget
