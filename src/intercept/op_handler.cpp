#include "torchlore/intercept/op_handler.hpp"

#include <ATen/ops/addmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mm.h>

#include "torchlore/intercept/op_call.hpp"

namespace torchlore {

OpHandler::~OpHandler() = default;

void OpHandler::boxed(OpCall& call) { call.run(); }

at::Tensor OpHandler::addmm(const at::Tensor& bias, const at::Tensor& a, const at::Tensor& b,
                            const at::Scalar& beta, const at::Scalar& alpha) {
  return at::addmm(bias, a, b, beta, alpha);
}

at::Tensor OpHandler::mm(const at::Tensor& a, const at::Tensor& b) { return at::mm(a, b); }

at::Tensor OpHandler::bmm(const at::Tensor& a, const at::Tensor& b) { return at::bmm(a, b); }

at::Tensor OpHandler::matmul(const at::Tensor& a, const at::Tensor& b) { return at::matmul(a, b); }

}  // namespace torchlore
