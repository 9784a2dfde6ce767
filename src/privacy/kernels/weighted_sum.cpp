#include "weighted_sum.hpp"

#include <ATen/Parallel.h>

#include <algorithm>

namespace torchlore::kernels {

void add_weighted_sum(const float* gradients, const float* factors, int64_t batch, int64_t count,
                      float* sum, const PerExampleKernels& kernels) {
  constexpr int64_t block = 4096;  // whole ones, so that a sum's bits do not depend on the threads
  at::parallel_for(0, (count + block - 1) / block, 4, [&](int64_t begin, int64_t end) {
    const int64_t from = begin * block;
    const int64_t to = std::min(end * block, count);
    kernels.add_weighted(sum + from, to - from, gradients + from, count, factors, batch);
  });
}

}  // namespace torchlore::kernels
