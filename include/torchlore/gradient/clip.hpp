#pragma once

#include <cstdint>

namespace torchlore {

/// How `TrainingStep` clips; made by the functions in `clip::`.
class Clip {
 public:
  /// What is limited.
  enum class Kind : uint8_t { none, norm, value };

  Clip() = default;
  /// Checks and stores; use the functions in `clip::`.
  /// @throws c10::ValueError unless the threshold (and norm_type, for a norm) are above 0.
  Clip(Kind kind, double threshold, double norm_type);

  /// What is limited.
  Kind kind() const { return kind_; }
  /// The largest norm, or the largest magnitude of an element.
  double threshold() const { return threshold_; }
  /// The p of the p-norm.
  double norm_type() const { return norm_type_; }

 private:
  Kind kind_ = Kind::none;
  double threshold_ = 0;
  double norm_type_ = 2;
};

/// The ways to clip.
namespace clip {

/// No clipping, and no norm measured.
inline Clip none() { return {}; }
/// `clip_grad_norm_` over the gradients of all optimizers together. @param max_norm > 0; infinity
/// only measures. @param norm_type the p of the p-norm, > 0.
inline Clip norm(double max_norm, double norm_type = 2.0) {
  return {Clip::Kind::norm, max_norm, norm_type};
}
/// `clip_grad_value_`. @param clip_value > 0 and finite.
inline Clip value(double clip_value) { return {Clip::Kind::value, clip_value, 2.0}; }

}  // namespace clip
}  // namespace torchlore
