// A batch that does not fit into memory, run in parts that do, with the gradient of the whole. The
// limit is a real one: the system refuses to give the process more.

#include <fmt/format.h>
#include <malloc.h>
#include <sys/resource.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>

#include <fstream>
#include <string>
#include <torchlore/core/bytes.hpp>
#include <torchlore/memory/run_or_split.hpp>

namespace nn = torch::nn;
namespace tl = torchlore;

/// The private memory of this process, in bytes.
int64_t private_memory() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmData:", 0) == 0) return std::stoll(line.substr(7)) * 1024;
  }
  return 0;
}

int main() {
  // Each tensor in a mapping of its own: what is freed counts as free to the system at once.
  ::mallopt(M_MMAP_THRESHOLD, 65'536);
  at::manual_seed(1);
  nn::Sequential model;
  for (int i = 0; i < 4; ++i) {
    model->push_back(nn::Linear(256, 256));
    model->push_back(nn::GELU());
  }
  const auto batch = at::randn({8192, 256});
  const auto loss = [&](const at::Tensor& part) { return model->forward(part).square().mean(); };

  loss(batch).backward();  // fits: 8 MiB for each of 8 layers
  const auto whole = model->parameters()[0].grad().clone();
  model->zero_grad();

  const auto limit = static_cast<rlim_t>(private_memory() + tl::MiB(24).count());
  const rlimit limits{limit, limit};
  if (::setrlimit(RLIMIT_DATA, &limits) != 0) return 1;

  tl::BatchSplitter splitter({.on_change = [](const tl::SplitEvent& event) {
    fmt::print("parts of {} do not fit, trying {}\n", event.from, event.to);
  }});
  const auto result = splitter(batch, loss);  // runs backward too

  const double error =
      ((model->parameters()[0].grad() - whole).abs().max() / whole.abs().max()).item<double>();
  fmt::print("{} parts of {}; the gradient differs by {:.1e}\n", result.parts, result.part_size,
             error);
  return error < 1e-5 ? 0 : 1;
}
