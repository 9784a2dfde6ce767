#include "torchlore/privacy/differentially_private.hpp"

#include "private_gradients.hpp"

namespace torchlore {

DifferentiallyPrivate differentially_private(torch::nn::Module& model,
                                             const DifferentiallyPrivateOptions& options) {
  return DifferentiallyPrivate(std::make_shared<privacy::PrivateGradients>(model, options));
}

const DifferentiallyPrivateOptions& DifferentiallyPrivate::options() const {
  return gradients_->options();
}
const PrivacyLedger& DifferentiallyPrivate::spent() const { return gradients_->spent(); }
double DifferentiallyPrivate::epsilon(double delta) const { return gradients_->epsilon(delta); }
int64_t DifferentiallyPrivate::steps() const { return gradients_->steps(); }
int64_t DifferentiallyPrivate::steps_left() const { return gradients_->steps_left(); }
double DifferentiallyPrivate::max_grad_norm() const { return gradients_->max_grad_norm(); }
StateDict DifferentiallyPrivate::state_dict() const { return gradients_->state_dict(); }
void DifferentiallyPrivate::load_state_dict(const StateDict& state) {
  gradients_->load_state_dict(state);
}

}  // namespace torchlore
