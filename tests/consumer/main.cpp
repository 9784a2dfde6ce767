// What a user's file looks like: LibTorch, torchlore, Eigen and fmt together, by linking
// torchlore::torchlore alone.
#include <ATen/Functions.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <torchlore/core/eigen.hpp>
#include <torchlore/core/parameters.hpp>
#include <torchlore/core/reducer.hpp>
#include <torchlore/fmt.hpp>

int main() {
  const auto ones = at::ones({2, 3});
  const torchlore::ParameterView view({ones, at::zeros({4})});
  const torchlore::Reducer alone;
  const auto sum = torchlore::eigen_matrix<const float>(ones).sum();
  fmt::print("{} parameters, {} rank, {} of {} is {}\n", view.size(), alone.world_size(),
             torchlore::ReduceOp::sum, ones.sizes().vec(), sum);
#ifndef _OPENMP
  fmt::print("OpenMP is off: at::parallel_for would be serial\n");
  return 1;
#endif
  return view.size() == 2 ? 0 : 1;
}
