#include "fused_step.hpp"

#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/full.h>
#include <c10/util/Exception.h>
#include <c10/util/flat_hash_map.h>
#include <omp.h>

#include <utility>

#include "torchlore/core/gradient_pass.hpp"
#include "torchlore/core/parameters.hpp"

namespace torchlore::fused {
namespace {

/// Below this many elements opening a parallel region costs about as much as the step itself: on two
/// cores 2,000 tensors of 1,000 elements took 30 ms with a region each, and 5.6 ms in shared ones.
constexpr int64_t kSmall = 32768;

/// Keeps LibTorch's kernels of this thread from opening parallel regions.
class OneThread {
 public:
  OneThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int before_;
};

bool is_small(const at::Tensor& param) { return param.is_cpu() && param.numel() < kSmall; }

/// Where to cut a list so that each part but the last has at least `kSmall` elements.
std::vector<size_t> cuts_of(const std::vector<at::Tensor>& params) {
  std::vector<size_t> cuts{0};
  int64_t elements = 0;
  for (size_t i = 0; i < params.size(); ++i) {
    elements += params[i].numel();
    if (elements >= kSmall) {
      cuts.push_back(i + 1);
      elements = 0;
    }
  }
  if (cuts.back() != params.size()) cuts.push_back(params.size());
  return cuts;
}

bool is_half(const at::Tensor& t) {
  return t.scalar_type() == at::kHalf || t.scalar_type() == at::kBFloat16;
}

bool kernel_exists(const Kernel& kernel, const at::Tensor& param) {
  if (param.is_cpu()) return kernel.half_on_cpu || !is_half(param);
  const auto op = c10::Dispatcher::singleton().findSchema({kernel.op, ""});
  return op && op->hasKernelForDispatchKey(c10::legacyExtractDispatchKey(param.key_set()));
}

void check(const Kernel& kernel, const at::Tensor& param) {
  const auto dtype = param.scalar_type();
  TORCH_CHECK_TYPE(
      dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf || dtype == at::kBFloat16,
      kernel.optimizer, " got a parameter of dtype ", dtype,
      "; parameters must be float16, bfloat16, float32 or float64");
  TORCH_CHECK_NOT_IMPLEMENTED(
      kernel.sparse_gradients || !param.grad().is_sparse(), kernel.optimizer,
      " does not support sparse gradients; give the parameters that have them to FusedSGD or "
      "FusedAdagrad");
}

bool fits(const Kernel& kernel, const at::Tensor& param) {
  return param.layout() == at::kStrided && param.is_non_overlapping_and_dense() &&
         param.numel() > 0 && same_layout(param, param.grad()) && kernel_exists(kernel, param);
}

}  // namespace

bool same_layout(const at::Tensor& param, const at::Tensor& other) {
  return other.layout() == at::kStrided && other.scalar_type() == param.scalar_type() &&
         other.device() == param.device() && other.sizes() == param.sizes() &&
         ((param.is_contiguous() && other.is_contiguous()) || param.strides() == other.strides());
}

Plan make_plan(torch::optim::Optimizer& optimizer, const Kernel& kernel, StateFits state_fits) {
  const auto& groups = optimizer.param_groups();
  const auto& states = optimizer.state();
  Plan plan{std::vector<std::vector<Item>>(groups.size()),
            std::vector<std::vector<at::Tensor>>(groups.size())};
  // A tied weight may be listed twice: two calls on one tensor must not run at the same time.
  ska::flat_hash_set<const void*> seen;
  seen.reserve(ParameterView(optimizer).size());
  for (size_t g = 0; g < groups.size(); ++g) {
    plan.fused[g].reserve(groups[g].params().size());
    for (const auto& param : groups[g].params()) {
      if (!param.grad().defined()) continue;
      check(kernel, param);
      const auto found = states.find(param.unsafeGetTensorImpl());
      auto* state = found == states.end() ? nullptr : found->second.get();
      const bool repeated = !seen.insert(param.unsafeGetTensorImpl()).second;
      plan.repeated = plan.repeated || repeated;
      if (!repeated && fits(kernel, param) && state_fits(param, state)) {
        plan.fused[g].push_back({&param, state});
      } else {
        plan.plain[g].push_back(param);
        plan.any_plain = true;
      }
    }
  }
  return plan;
}

std::optional<at::Tensor> divide_outside_kernel(const Plan& plan, const at::Tensor& divisor) {
  std::vector<at::Tensor> grads;
  ska::flat_hash_set<const void*> seen;
  const auto add = [&](const at::Tensor& param) {
    if (!plan.repeated || seen.insert(param.unsafeGetTensorImpl()).second) {
      grads.push_back(param.grad());
    }
  };
  for (const auto& group : plan.fused) {
    for (const auto& item : group) {
      if (plan.repeated || item.param->scalar_type() != at::kFloat) add(*item.param);
    }
  }
  for (const auto& group : plan.plain) {
    for (const auto& param : group) add(param);
  }
  if (!grads.empty()) divide_gradients_(grads, divisor);
  return plan.repeated ? std::nullopt : std::optional<at::Tensor>(divisor);
}

void check_divisor(const at::Tensor& divisor) {
  TORCH_CHECK_VALUE(divisor.defined() && divisor.numel() == 1,
                    "a divisor must be one number, but has shape ",
                    divisor.defined() ? divisor.sizes() : at::IntArrayRef());
  TORCH_CHECK_TYPE(at::isFloatingType(divisor.scalar_type()),
                   "a divisor must be a floating tensor, but has dtype ", divisor.scalar_type());
}

at::Tensor evaluate(const torch::optim::Optimizer::LossClosure& closure) {
  if (closure == nullptr) return {};
  const at::AutoGradMode enable_grad(true);
  return closure();
}

std::vector<at::Tensor> Batch::steps() const {
  const auto value = at::full({}, static_cast<double>(step), params[0].options().dtype(at::kFloat));
  return std::vector<at::Tensor>(params.size(), value);
}

std::optional<at::Tensor> Batch::scale(const std::optional<at::Tensor>& divisor) const {
  if (!divisor || params[0].scalar_type() != at::kFloat) return std::nullopt;
  return divisor->to(params[0].device(), at::kFloat);
}

void Batch::for_each_part(const std::function<void(size_t, size_t)>& f) const {
  if (!small) return f(0, params.size());
  const auto cuts = cuts_of(params);
  const auto parts = static_cast<int64_t>(cuts.size()) - 1;
  if (parts == 1) {
    const OneThread scope;
    return f(0, params.size());
  }
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    const at::NoGradGuard no_grad;  // grad mode belongs to a thread
    const auto first = cuts[static_cast<size_t>(begin)];
    f(first, cuts[static_cast<size_t>(end)] - first);
  });
}

Batch& BatchList::add(const at::Tensor& param, int64_t step, size_t expected) {
  auto batch = batches_.rbegin();
  for (; batch != batches_.rend(); ++batch) {
    const auto& first = batch->params[0];
    if (batch->step == step && batch->small == is_small(param) &&
        first.scalar_type() == param.scalar_type() && first.device() == param.device()) {
      break;
    }
  }
  if (batch == batches_.rend()) {
    batches_.push_back({.step = step, .small = is_small(param)});
    batch = batches_.rbegin();
    batch->params.reserve(expected);
    batch->grads.reserve(expected);
  }
  batch->params.push_back(param);
  batch->grads.push_back(param.grad());
  return *batch;
}

OnlyThese::OnlyThese(torch::optim::Optimizer& optimizer,
                     std::vector<std::vector<at::Tensor>>& params)
    : optimizer_(optimizer), params_(params) {
  swap();
}

OnlyThese::~OnlyThese() { swap(); }

void OnlyThese::swap() {
  for (size_t g = 0; g < params_.size(); ++g) {
    std::swap(optimizer_.param_groups()[g].params(), params_[g]);
  }
}

}  // namespace torchlore::fused
