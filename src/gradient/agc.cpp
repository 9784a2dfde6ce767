#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/where.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <unordered_set>

#include "../core/kernels/element_of.hpp"
#include "../core/kernels/gradient_kernels.hpp"
#include "torchlore/core/error.hpp"
#include "torchlore/core/gradient_pass.hpp"
#include "torchlore/gradient/clip.hpp"

namespace torchlore::clip {
namespace {

/// Elements worth a thread of their own.
constexpr int64_t kGrain = 32768;

struct Memory {
  char* data;
  int64_t element_size;
  kernels::Element element;

  void* row(int64_t index, int64_t size) const { return data + index * size * element_size; }
};

Memory memory_of(const at::Tensor& t) {
  return {static_cast<char*>(t.data_ptr()), t.element_size(), kernels::element_of(t.scalar_type())};
}

int64_t units_of(const at::Tensor& t) { return t.dim() < 2 ? 1 : t.size(0); }

/// Whether each unit is one run of memory, and they follow each other. The order of the elements
/// within a unit (channels last) does not matter.
bool rows_are_runs(const at::Tensor& t) {
  if (!t.is_cpu() || !t.is_non_overlapping_and_dense()) return false;
  return t.dim() < 2 || t.size(0) == 1 || t.stride(0) == t.numel() / t.size(0);
}

/// A parameter whose units are runs of memory.
struct Block {
  Memory weights;
  Memory gradient;
  int64_t units;
  int64_t size;   // elements of a unit
  int64_t start;  // elements of all blocks before
};

/// Blocks on the host, worked on in parallel; the work is shared by elements.
class BlockList {
 public:
  void add(const at::Tensor& weights, const at::Tensor& gradient) {
    const int64_t units = units_of(weights);
    blocks_.push_back(
        {memory_of(weights), memory_of(gradient), units, weights.numel() / units, total_});
    total_ += weights.numel();
  }

  /// Calls f(block, unit) for every unit; a unit belongs to the share that it begins in.
  template <typename F>
  void for_each_unit(const F& f) const {
    at::parallel_for(0, total_, kGrain, [&](int64_t begin, int64_t end) {
      auto block = std::upper_bound(blocks_.begin(), blocks_.end(), begin,
                                    [](int64_t at, const Block& b) { return at < b.start; });
      if (block != blocks_.begin()) --block;
      for (; block != blocks_.end() && block->start < end; ++block) {
        const auto first = std::max<int64_t>(begin - block->start + block->size - 1, 0);
        const auto last = end - block->start + block->size - 1;
        const int64_t stop = std::min(last / block->size, block->units);
        for (int64_t unit = first / block->size; unit < stop; ++unit) f(*block, unit);
      }
    });
  }

  bool empty() const { return blocks_.empty(); }

 private:
  std::vector<Block> blocks_;
  int64_t total_ = 0;
};

/// The norm of each unit, in float32 at least, in a shape that broadcasts over the tensor.
at::Tensor unit_norms(const at::Tensor& t) {
  const auto dtype = t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  if (t.dim() < 2) return at::linalg_vector_norm(t, 2, at::OptionalIntArrayRef{}, false, dtype);
  std::vector<int64_t> dims;
  for (int64_t d = 1; d < t.dim(); ++d) dims.push_back(d);
  return at::linalg_vector_norm(t, 2, dims, /*keepdim=*/true, dtype);
}

class AgcClipper final : public Clipper {
 public:
  explicit AgcClipper(AgcOptions options) : options_(std::move(options)) {
    for (const auto& t : options_.skip) skipped_.insert(t.unsafeGetTensorImpl());
  }

  std::optional<double> norm_type() const override { return std::nullopt; }

  void divide_and_clip_(const ParameterView& parameters, const at::Tensor& divisor) override {
    const c10::NoGradGuard no_grad;
    check(parameters);
    BlockList blocks;
    std::vector<at::Tensor> only_divided;
    parameters.for_each([&](const at::Tensor& p) {
      auto& grad = p.mutable_grad();
      if (!grad.defined() || grad.numel() == 0) return;
      if (skipped_.contains(p.unsafeGetTensorImpl())) {
        only_divided.push_back(grad);
      } else if (grad.is_sparse()) {
        grad = grad.coalesce();
        clip_tensor_(p.index_select(0, grad._indices()[0]), grad._values(), divisor);
      } else if (rows_are_runs(p) && rows_are_runs(grad)) {
        blocks.add(p, grad);
      } else {
        clip_tensor_(p, grad, divisor);
      }
    });
    if (!only_divided.empty()) divide_gradients_(only_divided, divisor);
    if (!blocks.empty()) clip_blocks_(blocks, divisor.item().toDouble());
  }

 private:
  static void check(const ParameterView& parameters) {
    check_gradients(gradients(parameters));
    parameters.for_each([](const at::Tensor& p) {
      const auto& grad = p.grad();
      TORCH_CHECK_NOT_IMPLEMENTED(
          !grad.defined() || !grad.is_sparse() || grad.sparse_dim() == 1,
          "clip::agc needs the rows of a gradient, but a sparse one has ",
          grad.defined() && grad.is_sparse() ? grad.sparse_dim() : 0,
          " sparse dimensions; make it dense, or put its parameter in AgcOptions::skip");
    });
  }

  void clip_blocks_(const BlockList& blocks, double divisor) const {
    const auto& k = kernels::gradient_kernels();
    blocks.for_each_unit([&](const Block& b, int64_t unit) {
      const auto* const w = b.weights.row(unit, b.size);
      auto* const g = b.gradient.row(unit, b.size);
      const double weights = std::sqrt(k.sum_squares(w, b.size, b.weights.element));
      const double norm = std::sqrt(k.sum_squares(g, b.size, b.gradient.element)) / divisor;
      const double limit = options_.clipping * std::max(weights, options_.eps);
      // A NaN compares false: it stays where it is.
      const double by = norm > limit ? divisor * (norm / limit) : divisor;
      if (by != 1) k.divide(g, b.size, b.gradient.element, by);
    });
  }

  /// The same by LibTorch's kernels: on an accelerator, and for strides that are not runs.
  void clip_tensor_(const at::Tensor& weights, const at::Tensor& grad,
                    const at::Tensor& divisor) const {
    const auto by =
        divisor.to(grad.device(), grad.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
    const auto norm = unit_norms(grad) / by;
    const auto limit =
        unit_norms(weights).clamp_min(options_.eps).to(norm.scalar_type()) * options_.clipping;
    const auto factor = at::where(norm > limit, norm / limit, at::ones_like(norm));
    grad.copy_(grad.to(by.scalar_type()) / (factor * by));
  }

  AgcOptions options_;
  std::unordered_set<const void*> skipped_;
};

}  // namespace

Clip agc(const AgcOptions& options) {
  check_positive("clipping", options.clipping);
  check_positive("eps", options.eps);
  for (size_t i = 0; i < options.skip.size(); ++i) {
    TORCH_CHECK_VALUE(options.skip[i].defined(), "AgcOptions::skip[", i, "] is undefined");
  }
  return AgcClipper(options);
}

}  // namespace torchlore::clip
