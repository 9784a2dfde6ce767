// What the claims on checkpointing run in a process of its own:
//   torchlore_checkpoint_worker peak <threads> <quick> <checkpointed>
//     one step; prints the growth of the resident peak, and the peak of LibTorch's CPU allocator
//   torchlore_checkpoint_worker out_of_memory <threads> <quick>
//     fails every allocation of a step; prints what became of it
#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "../../../tests/support/out_of_memory.hpp"
#include "../harness/memory.hpp"
#include "../models/checkpointed.hpp"
#include "torchlore/memory/memory_meter.hpp"

namespace torchlore::claims {
namespace {

models::TransformerStack make_model(const models::CheckpointSizes& sizes) {
  at::manual_seed(1);
  return models::TransformerStack(models::TransformerStackOptions{
      sizes.layers, sizes.width, sizes.heads, sizes.feedforward, 0.1});
}

void peak(const models::CheckpointSizes& sizes, bool checkpointed) {
  auto model = make_model(sizes);
  const auto x = at::randn({sizes.length, sizes.batch, sizes.width});
  // What LibTorch sets up at its first step is there before.
  checkpoint_step(model, at::randn({8, 1, sizes.width}), checkpointed);
  model->zero_grad();
  const int64_t before = resident_bytes();
  const bool counted = reset_peak_rss();
  const MemoryMeter meter;
  checkpoint_step(model, x, checkpointed);
  const auto allocator = static_cast<long long>(meter.peak().count());
  std::printf("%lld %lld\n", counted ? static_cast<long long>(peak_rss_bytes() - before) : -1LL,
              allocator);
}

void out_of_memory(bool quick) {
  auto model = make_model({quick ? 2 : 4, 32, 2, 64, 8, 2});
  const auto x = at::randn({8, 2, 32});
  const auto clean = [&] { model->zero_grad(); };
  const auto outcome = testing::fail_at_every_allocation(
      [&] {
        at::manual_seed(7);
        checkpoint_step(model, x, true);
        std::vector<at::Tensor> gradients;
        for (const auto& p : model->parameters()) gradients.push_back(p.grad());
        return gradients;
      },
      clean);
  std::printf(
      "%lld %lld %lld %lld %lld\n", static_cast<long long>(outcome.allocations),
      static_cast<long long>(outcome.not_thrown), static_cast<long long>(outcome.other_type),
      static_cast<long long>(outcome.leaked_bytes), static_cast<long long>(outcome.next_unlike));
}

}  // namespace
}  // namespace torchlore::claims

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  at::set_num_threads(std::stoi(arguments.at(1)));
  const bool quick = arguments.at(2) == "1";
  if (arguments.at(0) == "peak") {
    torchlore::claims::peak(torchlore::models::CheckpointSizes::of(quick), arguments.at(3) == "1");
  } else {
    torchlore::claims::out_of_memory(quick);
  }
}
