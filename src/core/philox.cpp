#include "torchlore/core/philox.hpp"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <numeric>

namespace torchlore {
namespace {

// The last 256 streams belong to the library, so that its numbers are never a user's as well.
constexpr int64_t kPermutationStream = 0xFFFF'FFFF;

__extension__ using uint128 = unsigned __int128;

/// Calls f(words, place, i) for each element i of [0, count), in parallel. The numbers depend on
/// first + i only.
template <typename T, typename F>
void for_each_number(const PhiloxStream& stream, int64_t first, int64_t count, const F& f) {
  constexpr int64_t kPerBlock = PhiloxStream::kPerBlock<T>;
  constexpr int64_t kGrain = 16'384;  // some 100 µs: far above the cost of waking a thread
  at::parallel_for(0, count, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end;) {
      const auto words = stream.block(static_cast<uint64_t>((first + i) / kPerBlock));
      int64_t place = (first + i) % kPerBlock;
      for (; place < kPerBlock && i < end; ++place, ++i) {
        f(words, static_cast<uint64_t>(place), i);
      }
    }
  });
}

/// Fills `tensor` by number(T tag, words, place); hides dtype, strides and device.
template <typename F>
at::Tensor fill(at::Tensor tensor, const PhiloxStream& stream, int64_t first, const F& number) {
  const int64_t last_first = std::numeric_limits<int64_t>::max() - tensor.numel();
  TORCH_CHECK_VALUE(first >= 0 && first <= last_first, "first must lie in [0, ", last_first,
                    "], but is ", first);
  const auto dtype = tensor.scalar_type();
  const bool low = dtype == at::kHalf || dtype == at::kBFloat16;
  TORCH_CHECK_TYPE(low || dtype == at::kFloat || dtype == at::kDouble,
                   "expected a float16, bfloat16, float32 or float64 tensor, but got ", dtype);
  const at::NoGradGuard no_grad;
  const bool direct = tensor.is_cpu() && tensor.is_contiguous() && !low;
  auto host = direct ? tensor : at::empty(tensor.sizes(), low ? at::kFloat : dtype);
  const auto run = [&]<typename T>(T* data) {
    for_each_number<T>(stream, first, host.numel(), [&](const auto& words, uint64_t place, auto i) {
      data[i] = number(T{}, words, place);
    });
  };
  if (dtype == at::kDouble) {
    run(host.mutable_data_ptr<double>());
  } else {
    run(host.mutable_data_ptr<float>());
  }
  if (!direct) tensor.copy_(host);
  return tensor;
}

}  // namespace

uint64_t PhiloxEngine::below(uint64_t bound) {
  TORCH_CHECK_VALUE(bound > 0, "a number below 0 was asked for; the bound must be 1 or more");
  uint128 product = uint128{(*this)()} * bound;
  if (static_cast<uint64_t>(product) < bound) {
    const uint64_t threshold = (uint64_t{0} - bound) % bound;  // 2^64 mod bound
    while (static_cast<uint64_t>(product) < threshold) product = uint128{(*this)()} * bound;
  }
  return static_cast<uint64_t>(product >> 64);
}

std::vector<int64_t> philox_permutation(uint64_t seed, int64_t epoch, int64_t n) {
  TORCH_CHECK_VALUE(n >= 0, "a permutation needs a length of 0 or above, but n is ", n);
  PhiloxEngine engine(PhiloxStream(seed, epoch, kPermutationStream));
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), int64_t{0});
  for (size_t left = order.size(); left > 1; --left) {
    std::swap(order[left - 1], order[engine.below(left)]);
  }
  return order;
}

at::Tensor philox_uniform_(at::Tensor tensor, const PhiloxStream& stream, double low, double high,
                           int64_t first) {
  TORCH_CHECK_VALUE(low <= high && std::isfinite(high - low),
                    "expected finite low <= high, but got [", low, ", ", high, ")");
  return fill(std::move(tensor), stream, first,
              [=]<typename T>(T, const std::array<uint32_t, 4>& words, uint64_t place) {
                const double number = PhiloxStream::uniform_of<T>(words, place);
                return static_cast<T>(low + (high - low) * number);
              });
}

at::Tensor philox_normal_(at::Tensor tensor, const PhiloxStream& stream, double mean, double stddev,
                          int64_t first) {
  TORCH_CHECK_VALUE(std::isfinite(mean), "mean must be finite, but is ", mean);
  check_not_negative("stddev", stddev);
  return fill(std::move(tensor), stream, first,
              [=]<typename T>(T, const std::array<uint32_t, 4>& words, uint64_t place) {
                return static_cast<T>(mean) +
                       static_cast<T>(stddev) * PhiloxStream::normal_of<T>(words, place);
              });
}

}  // namespace torchlore
