// What a user's file looks like: LibTorch, torchlore and fmt together, by linking torchlore::torchlore.
#include <ATen/Functions.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <torchlore/core/parameters.hpp>
#include <torchlore/core/reducer.hpp>

int main() {
  const torchlore::ParameterView view({at::ones({2, 3}), at::zeros({4})});
  const torchlore::Reducer alone;
  fmt::print("{} parameters, {} rank, sizes {}\n", view.size(), alone.world_size(),
             at::ones({2, 3}).sizes().vec());
#ifndef _OPENMP
  fmt::print("OpenMP is off: at::parallel_for would be serial\n");
  return 1;
#endif
  return view.size() == 2 ? 0 : 1;
}
