#pragma once

#include <ATen/core/Tensor.h>

#include <concepts>
#include <cstdint>
#include <typeinfo>

namespace torchlore {

class OpCall;

/// What an `OpMode` does with the ops it sees. Derive from it and override the ops that matter.
///
/// An override may look at the arguments, call the base's function (which runs the op) with the same
/// or other arguments, or compute something else altogether; what it returns takes the op's place.
/// Backward flows through whatever it calls. While an override runs, its own mode is off: what it
/// calls is seen by the modes around it only.
///
/// ```cpp
/// struct CountMatmuls : torchlore::OpHandler {
///   int64_t count = 0;
///   at::Tensor addmm(const at::Tensor& bias, const at::Tensor& a, const at::Tensor& b,
///                    const at::Scalar& beta, const at::Scalar& alpha) override {
///     ++count;
///     return OpHandler::addmm(bias, a, b, beta, alpha);
///   }
/// };
/// ```
/// Ops are those that a model calls, above autograd and autocast, with the arguments as the model
/// gave them. Which ones a `torch::nn` module calls is listed in docs/coverage.md; `nn::Linear`, for
/// one, calls `addmm` or `matmul`, never `linear`.
class OpHandler {
 public:
  virtual ~OpHandler();

  /// Whether results depend on this handler. A handler that only looks returns false; recomputing a
  /// forward pass (`checkpoint`) may then go on after its mode has ended.
  virtual bool changes_results() const { return true; }

  /// Every op that has no override of its own here, with arguments and results as one stack. Not
  /// overriding it costs those ops nothing.
  virtual void boxed(OpCall& call);

  /// beta * bias + alpha * a b; what `nn::Linear` with a bias calls for 2-d input.
  virtual at::Tensor addmm(const at::Tensor& bias, const at::Tensor& a, const at::Tensor& b,
                           const at::Scalar& beta, const at::Scalar& alpha);
  /// The product of two matrices.
  virtual at::Tensor mm(const at::Tensor& a, const at::Tensor& b);
  /// A batch of products of matrices.
  virtual at::Tensor bmm(const at::Tensor& a, const at::Tensor& b);
  /// The product of vectors, matrices or batches of them; what `nn::Linear` calls otherwise.
  virtual at::Tensor matmul(const at::Tensor& a, const at::Tensor& b);
};

/// The functions of an `OpHandler` that a class overrides, as a set of bits.
class HandledOps {
 public:
  /// One bit per function of `OpHandler`.
  enum Op : uint8_t { boxed, addmm, mm, bmm, matmul };

  /// What the handler's class overrides; everything if its class is only known at run time.
  template <std::derived_from<OpHandler> H>
  static HandledOps of(const H& handler) {
    // A reference to a base says nothing about what the object's own class overrides.
    if (typeid(handler) != typeid(H)) return HandledOps(~uint64_t{0});
    HandledOps ops(0);
    // The type of &H::f names the class that declares f. Where it cannot be named (an override that
    // is private or overloaded) there is one.
#define TORCHLORE_HANDLED(op)                                                   \
  if constexpr (requires { &H::op; }) {                                         \
    if (!std::same_as<decltype(&H::op), decltype(&OpHandler::op)>) ops.add(op); \
  } else {                                                                      \
    ops.add(op);                                                                \
  }
    TORCHLORE_HANDLED(boxed)
    TORCHLORE_HANDLED(addmm)
    TORCHLORE_HANDLED(mm)
    TORCHLORE_HANDLED(bmm)
    TORCHLORE_HANDLED(matmul)
#undef TORCHLORE_HANDLED
    return ops;
  }

  /// Whether the op is in the set.
  bool has(Op op) const { return (bits_ >> op & 1) != 0; }
  /// Whether any op beside `boxed` is in the set.
  bool typed() const { return (bits_ & ~uint64_t{1}) != 0; }

 private:
  explicit HandledOps(uint64_t bits) : bits_(bits) {}
  void add(Op op) { bits_ |= uint64_t{1} << op; }

  uint64_t bits_;
};

}  // namespace torchlore
