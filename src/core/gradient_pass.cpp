#include "torchlore/core/gradient_pass.hpp"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/_foreach_div.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/clamp_min.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/stack.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "kernels/element_of.hpp"
#include "kernels/gradient_kernels.hpp"
#include "torchlore/core/error.hpp"

namespace torchlore {
namespace {

using kernels::Element;
using kernels::element_of;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
/// Elements that one thread reads at a time: 256 KiB of float32. Sums are kept per chunk and added
/// in order, so the result does not depend on the number of threads.
constexpr int64_t kChunk = 65536;
/// Elements worth a thread of their own.
constexpr int64_t kGrain = 32768;

/// A piece of gradient memory, and how many elements come before it in the whole pass.
struct Chunk {
  void* data;
  int64_t count;
  int64_t start;
  Element element;
};

/// The values of a gradient as a strided tensor; a sparse one must be coalesced first, because
/// values at the same place add up.
at::Tensor values_of(const at::Tensor& grad) {
  if (!grad.is_sparse()) return grad;
  return grad.coalesce()._values();
}

/// Host tensors cut into chunks of flat memory.
class ChunkList {
 public:
  void add(const at::Tensor& flat) {
    const auto element = element_of(flat.scalar_type());
    const auto size = static_cast<int64_t>(flat.element_size());
    auto* bytes = static_cast<char*>(flat.data_ptr());
    for (int64_t i = 0; i < flat.numel(); i += kChunk) {
      const int64_t count = std::min(kChunk, flat.numel() - i);
      chunks_.push_back({bytes + i * size, count, total_, element});
      total_ += count;
    }
  }

  /// Calls f(index, chunk) for every chunk, in parallel; work is shared by elements, not chunks.
  template <typename F>
  void for_each(const F& f) const {
    at::parallel_for(0, total_, kGrain, [&](int64_t begin, int64_t end) {
      auto chunk = std::lower_bound(chunks_.begin(), chunks_.end(), begin,
                                    [](const Chunk& c, int64_t at) { return c.start < at; });
      for (; chunk != chunks_.end() && chunk->start < end; ++chunk) {
        f(static_cast<size_t>(chunk - chunks_.begin()), *chunk);
      }
    });
  }

  size_t size() const { return chunks_.size(); }
  bool has(Element element) const {
    return std::any_of(chunks_.begin(), chunks_.end(),
                       [&](const Chunk& c) { return c.element == element; });
  }

 private:
  std::vector<Chunk> chunks_;
  int64_t total_ = 0;
};

template <typename Key>
using Groups = std::vector<std::pair<Key, std::vector<at::Tensor>>>;

/// Splits tensors by key(tensor), in order of first appearance.
template <typename KeyOf>
auto split(at::TensorList tensors, const KeyOf& key_of) {
  Groups<decltype(key_of(tensors[0]))> groups;
  for (const auto& t : tensors) {
    const auto key = key_of(t);
    const auto same = [&](const auto& group) { return group.first == key; };
    auto found = std::find_if(groups.begin(), groups.end(), same);
    if (found == groups.end()) found = groups.insert(found, {key, {}});
    found->second.push_back(t);
  }
  return groups;
}

/// What the pass knows of one device's gradients: the norm's p-th power (for infinity the maximum).
struct HostStats {
  double power = 0;
  bool finite = true;
};

double to_power(double norm, double p) {
  if (p == kInfinity || p == 1) return norm;
  return p == 2 ? norm * norm : std::pow(norm, p);
}

double from_power(double power, double p) {
  if (p == kInfinity || p == 1) return power;
  return p == 2 ? std::sqrt(power) : std::pow(power, 1 / p);
}

double combine(double a, double b, double p) {
  if (p != kInfinity) return a + b;
  return std::isnan(a) || std::isnan(b) ? std::numeric_limits<double>::quiet_NaN() : std::max(a, b);
}

HostStats measure_chunks(const ChunkList& chunks, double p) {
  const auto& k = kernels::gradient_kernels();
  const auto measure = p == kInfinity ? k.max_abs : p == 1 ? k.sum_abs : k.sum_squares;
  std::vector<double> parts(chunks.size());
  chunks.for_each(
      [&](size_t i, const Chunk& c) { parts[i] = measure(c.data, c.count, c.element); });
  HostStats stats;
  for (const double part : parts) stats.power = combine(stats.power, part, p);
  stats.finite = std::isfinite(stats.power);
  return stats;
}

/// Squares of float64 leave its range above 1e154 and below 1e-154, where the number itself does
/// not.
bool squares_left_range(const HostStats& stats) { return !stats.finite || stats.power < 1e-280; }

/// Any norm by LibTorch's kernel, scaled by the largest element: for other p, and for float64 at
/// the limits of its range.
double slow_norm(const std::vector<at::Tensor>& flats, double p, bool& finite) {
  double largest = 0;
  for (const auto& t : flats) {
    if (t.numel() == 0) continue;
    largest = combine(largest, at::linalg_vector_norm(t, kInfinity).item<double>(), kInfinity);
  }
  finite = std::isfinite(largest);
  if (!finite || largest == 0) return largest;
  double power = 0;
  for (const auto& t : flats) {
    if (t.numel() == 0) continue;
    const auto scaled = t.to(at::kDouble) / largest;
    power += to_power(at::linalg_vector_norm(scaled, p).item<double>(), p);
  }
  return largest * from_power(power, p);
}

struct HostNorm {
  double norm = 0;
  bool finite = true;
};

HostNorm measure_host(const std::vector<at::Tensor>& grads, double p) {
  std::vector<at::Tensor> flats;
  flats.reserve(grads.size());
  for (const auto& t : grads) {
    flats.push_back(t.is_non_overlapping_and_dense() ? t : t.contiguous());
  }
  HostNorm result;
  if (p == 2 || p == 1 || p == kInfinity) {
    ChunkList chunks;
    for (const auto& t : flats) chunks.add(t);
    const auto stats = measure_chunks(chunks, p);
    const bool retry = p == 2 && squares_left_range(stats) && chunks.has(Element::f64);
    if (!retry) return {from_power(stats.power, p), stats.finite};
  }
  result.norm = slow_norm(flats, p, result.finite);
  return result;
}

/// Statistics of one accelerator's gradients, left on it.
GradientStats measure_accelerator(const std::vector<at::Tensor>& grads, double p, bool wide) {
  const auto dtype = wide ? at::kDouble : at::kFloat;
  std::vector<at::Tensor> norms;
  for (const auto& [key, tensors] :
       split(grads, [](const at::Tensor& t) { return t.scalar_type(); })) {
    const auto part = at::_foreach_norm(tensors, p, dtype);
    norms.insert(norms.end(), part.begin(), part.end());
  }
  const auto norm = at::linalg_vector_norm(at::stack(norms), p);
  return {norm, at::isfinite(norm).logical_not().to(at::kFloat)};
}

GradientStats measure_device(const at::Device& device, const std::vector<at::Tensor>& grads,
                             double p, bool wide) {
  if (!device.is_cpu()) return measure_accelerator(grads, p, wide);
  const auto host = measure_host(grads, p);
  return {at::scalar_tensor(host.norm, at::kDouble),
          at::scalar_tensor(host.finite ? 0.0 : 1.0, at::kFloat)};
}

/// One value from several devices, on the first.
GradientStats join_devices(const std::vector<GradientStats>& parts, double p) {
  if (parts.size() == 1) return parts.front();
  const auto home = parts.front().norm.device();
  std::vector<at::Tensor> norms, flags;
  for (const auto& part : parts) {
    norms.push_back(part.norm.to(home, at::kDouble));
    flags.push_back(part.found_inf.to(home));
  }
  return {at::linalg_vector_norm(at::stack(norms), p), at::stack(flags).amax()};
}

void reduce_over_ranks(GradientStats& stats, double p, const Reducer& reducer) {
  if (reducer.is_identity()) return;
  reducer.all_reduce_(stats.found_inf, ReduceOp::max);
  if (p == kInfinity) {
    reducer.all_reduce_(stats.norm, ReduceOp::max);
    return;
  }
  stats.norm = stats.norm.pow(p);
  reducer.all_reduce_(stats.norm, ReduceOp::sum);
  stats.norm = stats.norm.pow(1 / p);
}

void divide_on_accelerators(at::TensorList grads, const at::Tensor& divisor) {
  const auto kind = [](const at::Tensor& t) { return std::pair(t.device(), t.scalar_type()); };
  for (auto& [key, tensors] : split(grads, kind)) {
    at::_foreach_div_(tensors, divisor.to(key.first));
  }
}

}  // namespace

void check_gradients(at::TensorList grads) {
  for (size_t i = 0; i < grads.size(); ++i) {
    const auto dtype = grads[i].scalar_type();
    TORCH_CHECK_TYPE(
        dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf || dtype == at::kBFloat16,
        "gradient ", i, " has dtype ", dtype,
        "; gradients must be float16, bfloat16, float32 or float64");
  }
}

GradientStats gradient_stats(at::TensorList grads, double norm_type, const Reducer& reducer) {
  check_norm_type(norm_type);
  check_gradients(grads);
  const bool wide = std::any_of(grads.begin(), grads.end(),
                                [](const auto& g) { return g.scalar_type() == at::kDouble; });
  std::vector<at::Tensor> values;
  values.reserve(grads.size());
  for (const auto& grad : grads) values.push_back(values_of(grad));
  std::vector<GradientStats> parts;
  for (const auto& [device, tensors] :
       split(values, [](const at::Tensor& t) { return t.device(); })) {
    parts.push_back(measure_device(device, tensors, norm_type, wide));
  }
  if (parts.empty()) parts.push_back(measure_device(at::kCPU, {}, norm_type, wide));
  auto stats = join_devices(parts, norm_type);
  reduce_over_ranks(stats, norm_type, reducer);
  if (!wide) stats.norm = stats.norm.to(at::kFloat);
  return stats;
}

void divide_gradients_(at::TensorList grads, const at::Tensor& divisor) {
  TORCH_CHECK_VALUE(divisor.numel() == 1, "a divisor must be one number, but has shape ",
                    divisor.sizes());
  check_gradients(grads);
  ChunkList chunks;
  std::vector<at::Tensor> strided, elsewhere;
  for (const auto& grad : grads) {
    const auto memory = grad.is_sparse() ? grad._values() : grad;
    if (!memory.is_cpu()) {
      elsewhere.push_back(memory);
    } else if (memory.is_non_overlapping_and_dense()) {
      chunks.add(memory);
    } else {
      strided.push_back(memory);
    }
  }
  divide_on_accelerators(elsewhere, divisor);
  if (chunks.size() == 0 && strided.empty()) return;
  const double value = divisor.item<double>();
  if (value == 1) return;
  const auto divide = kernels::gradient_kernels().divide;
  chunks.for_each([&](size_t, const Chunk& c) { divide(c.data, c.count, c.element, value); });
  for (auto& t : strided) t.div_(value);
}

ClippedNorm clip_to_norm(const at::Tensor& norm, const at::Tensor& divisor, double max_norm) {
  return clip_to_norm(norm, divisor, [max_norm](const at::Tensor&) { return max_norm; });
}

ClippedNorm clip_to_norm(const at::Tensor& norm, const at::Tensor& divisor,
                         c10::function_ref<double(const at::Tensor& norm)> max_norm) {
  const auto carried = divisor.defined() ? divisor.to(norm.options()) : at::Tensor();
  const auto true_norm = carried.defined() ? norm / carried : norm;
  const double limit = max_norm(true_norm);
  TORCH_CHECK_VALUE(limit > 0, "max_norm must be above 0, but is ", limit,
                    "; use infinity to measure without clipping");
  if (limit == kNoClip) {
    return {true_norm, carried.defined() ? carried : at::ones_like(norm)};
  }
  // clamp_min keeps NaN, so a poisoned norm is seen and not silently taken for "no clipping".
  const auto clip = at::clamp_min((true_norm + 1e-6) / limit, 1.0);
  return {true_norm, carried.defined() ? clip * carried : clip};
}

}  // namespace torchlore
