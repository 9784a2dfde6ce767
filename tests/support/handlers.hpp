#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "torchlore/intercept/op_call.hpp"
#include "torchlore/intercept/op_handler.hpp"

/// Handlers that the tests of OpMode share.
namespace torchlore::testing {

/// Counts addmm, on any number of threads.
struct CountMatmuls : OpHandler {
  at::Tensor addmm(const at::Tensor& bias, const at::Tensor& a, const at::Tensor& b,
                   const at::Scalar& beta, const at::Scalar& alpha) override {
    ++count;
    return OpHandler::addmm(bias, a, b, beta, alpha);
  }
  std::atomic<int64_t> count = 0;
};

/// Counts addmm, and changes nothing.
struct ObserveMatmuls : CountMatmuls {
  bool changes_results() const override { return false; }
};

/// Doubles what addmm computes.
struct Doubling : OpHandler {
  at::Tensor addmm(const at::Tensor& bias, const at::Tensor& a, const at::Tensor& b,
                   const at::Scalar& beta, const at::Scalar& alpha) override {
    return OpHandler::addmm(bias, a, b, beta, alpha) * 2;
  }
};

/// Writes down the names of all ops, whole or down to their parts.
struct Trace : OpHandler {
  explicit Trace(bool into_parts = false) : parts(into_parts) {}
  void boxed(OpCall& call) override {
    if (parts && call.composite()) return call.run_parts();
    names.push_back(call.name());
    call.run();
  }
  bool changes_results() const override { return false; }
  bool parts;
  std::vector<std::string> names;
};

using Names = std::vector<std::string>;

/// One addmm: 2.
inline at::Tensor multiply() {
  const auto bias = at::zeros(1);
  const auto row = at::ones({1, 2});
  const auto column = at::ones({2, 1});
  return at::addmm(bias, row, column);
}

}  // namespace torchlore::testing
