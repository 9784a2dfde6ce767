#include "torchlore/memory/activations.hpp"

namespace torchlore {

Activations::Activations(std::function<std::shared_ptr<void>()> make_scope)
    : make_scope_(std::move(make_scope)) {
  enter();  // bad options throw here, and not in the first step
}

Activations Activations::keep() {
  return Activations([]() -> std::shared_ptr<void> { return nullptr; });
}

Activations Activations::budget(Bytes bytes, ActivationBudgetOptions options) {
  return Activations([bytes, options = std::move(options)] {
    return std::make_shared<ActivationBudget>(bytes, options);
  });
}

Activations Activations::compress(c10::ScalarType dtype, CompressOptions options) {
  return Activations([=] { return std::make_shared<CompressActivations>(dtype, options); });
}

Activations Activations::offload(OffloadOptions options) {
  return Activations(
      [options = std::move(options)] { return std::make_shared<OffloadActivations>(options); });
}

std::shared_ptr<void> Activations::enter() const { return make_scope_(); }

}  // namespace torchlore
