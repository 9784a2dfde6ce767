#pragma once

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/randn_like.h>
#include <ATen/ops/tensor.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <set>
#include <string>

#include "torchlore/core/module_state.hpp"
#include "torchlore/core/philox.hpp"
#include "torchlore/core/run_state.hpp"
#include "torchlore/core/tensor_file.hpp"
#include "torchlore/data/resumable_sampler.hpp"
#include "torchlore/precision/loss_scaler.hpp"

/// A training run that is killed at random instants and started again until it is through, and its
/// comparison with one that nobody killed.
namespace torchlore::testing {

/// A net whose training depends on everything a run has to restore: random numbers (dropout),
/// buffers (batch norm), the optimizer's moments.
struct KilledNetImpl : torch::nn::Module {
  KilledNetImpl() {
    first = register_module("first", torch::nn::Linear(6, 16));
    norm = register_module("norm", torch::nn::BatchNorm1d(16));
    dropout = register_module("dropout", torch::nn::Dropout(0.3));
    head = register_module("head", torch::nn::Linear(16, 3));
  }
  at::Tensor forward(const at::Tensor& x) { return head(dropout(norm(first(x)).relu())); }
  torch::nn::Linear first{nullptr}, head{nullptr};
  torch::nn::BatchNorm1d norm{nullptr};
  torch::nn::Dropout dropout{nullptr};
};

struct KilledRunOptions {
  std::filesystem::path folder = {};  ///< for the files; emptied
  int64_t kills = 50;  ///< at least so many; runs are repeated until they are reached
  uint64_t seed = 1;   ///< of the instants
  int64_t steps = 90;
  int64_t save_every = 3;
};

struct KilledRunResult {
  int64_t runs = 0;
  int64_t kills = 0;
  int64_t kills_while_writing = 0;  ///< left a half-written file behind
  int64_t lost = 0;                 ///< runs that could not go on
  int64_t different = 0;            ///< steps or final weights unlike the undisturbed run's
};

namespace killed_run {

namespace fs = std::filesystem;

/// Everything of the run that `train` holds between steps.
struct Training {
  KilledNetImpl net;
  torch::optim::AdamW optimizer{net.parameters(), torch::optim::AdamWOptions(0.02)};
  LossScaler scaler{{.init_scale = 1024, .growth_interval = 5}};
  ResumableSampler sampler{40, {.seed = 7}};
  int64_t step = 0;
  at::Tensor data = philox_normal_(at::empty({40, 6}), PhiloxStream(3));

  double train_on(const std::vector<size_t>& batch) {
    const std::vector<int64_t> indices(batch.begin(), batch.end());
    auto x = data.index_select(0, at::tensor(indices));
    x = x + 0.1 * at::randn_like(x);  // augmentation
    optimizer.zero_grad();
    const auto loss = (net.forward(x) - x.slice(1, 0, 3).square()).square().mean();
    scaler.scale(loss).backward();
    scaler.step(optimizer);
    scaler.update();
    auto& options = optimizer.param_groups()[0].options();
    options.set_lr(options.get_lr() * 0.995);
    ++step;
    return loss.item<double>();
  }
};

/// One line per step, all its bits; written at once, so that a kill cannot tear it.
inline void log_step(int file, int64_t step, double loss, double scale) {
  char line[64];
  const int size =
      std::snprintf(line, sizeof(line), "%lld %016llx %g\n", static_cast<long long>(step),
                    static_cast<unsigned long long>(std::bit_cast<uint64_t>(loss)), scale);
  if (::write(file, line, static_cast<size_t>(size)) != size) std::abort();
}

/// The program under test: trains, saves as it goes, and continues from what is in the folder.
inline void train(const fs::path& folder, const KilledRunOptions& options) {
  at::set_num_threads(1);
  at::manual_seed(11);
  Training t;
  RunState run(folder, {.keep = 2});
  run.add("model", t.net).add("optimizer", t.optimizer, t.net).add("scaler", t.scaler);
  run.add("sampler", t.sampler).add("step", t.step);
  run.resume();
  const int log = ::open((folder / "log.txt").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0666);
  while (t.step < options.steps) {
    t.sampler.reset();
    while (t.step < options.steps) {
      const auto batch = t.sampler.next(7);
      if (!batch) break;
      const double loss = t.train_on(*batch);
      t.sampler.consume(static_cast<int64_t>(batch->size()));
      log_step(log, t.step, loss, t.scaler.get_scale());
      if (t.step % options.save_every == 0) run.save(t.step);
    }
  }
  write_tensors(folder / "final.safetensors", module_state_dict(t.net));
}

/// Runs `train` in a child. It must not have used LibTorch's threads before, for they do not survive
/// a fork.
inline pid_t start(const fs::path& folder, const KilledRunOptions& options) {
  const pid_t child = ::fork();
  if (child != 0) return child;
  try {
    train(folder, options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    ::_exit(1);
  }
  ::_exit(0);
}

inline std::string contents(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline std::set<std::string> lines(const fs::path& path) {
  std::ifstream file(path);
  std::set<std::string> result;
  for (std::string line; std::getline(file, line);) result.insert(line);
  return result;
}

inline bool has_leftover(const fs::path& folder) {
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() == ".tmp") return true;
  }
  return false;
}

/// Steps of `folder` unlike those of `reference`, where a step that is missing counts too, and one
/// more for other final weights. A step that was trained twice must have given the same twice.
inline int64_t differences(const fs::path& folder, const fs::path& reference) {
  const auto expected = lines(reference / "log.txt");
  const auto actual = lines(folder / "log.txt");
  int64_t count = 0;
  for (const auto& line : actual) count += expected.contains(line) ? 0 : 1;
  for (const auto& line : expected) count += actual.contains(line) ? 0 : 1;
  const auto weights = contents(folder / "final.safetensors");
  return count + (weights.empty() || weights != contents(reference / "final.safetensors") ? 1 : 0);
}

inline int64_t newest_step(const fs::path& folder) {
  const auto newest = newest_run(folder);
  return newest ? newest->step : 0;
}

/// Starts the run over and over, kills it after a random time below `seconds`, until one life ends by
/// itself. On a machine that has become slower, lives without progress lead to longer ones.
inline void run_with_kills(const fs::path& folder, const KilledRunOptions& options, double seconds,
                           std::mt19937_64& random, KilledRunResult& result) {
  std::uniform_real_distribution<double> part(0, 1);
  for (double longest = seconds;;) {
    const int64_t before = newest_step(folder);
    const pid_t child = start(folder, options);
    ::usleep(static_cast<useconds_t>(part(random) * longest * 1e6));
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return;
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL) {
      ++result.lost;
      return;
    }
    ++result.kills;
    result.kills_while_writing += has_leftover(folder) ? 1 : 0;
    const bool stuck = newest_step(folder) == before;
    longest = stuck ? longest * 1.25 : std::max(seconds, longest / 1.25);
  }
}

}  // namespace killed_run

/// Call it before anything has started LibTorch's threads.
inline KilledRunResult kill_and_resume(const KilledRunOptions& options) {
  using namespace killed_run;
  fs::remove_all(options.folder);
  const auto reference = options.folder / "undisturbed";
  fs::create_directories(reference);
  KilledRunResult result;
  const auto start_time = std::chrono::steady_clock::now();
  int status = 0;
  ::waitpid(start(reference, options), &status, 0);
  const std::chrono::duration<double> whole = std::chrono::steady_clock::now() - start_time;
  if (status != 0) result.lost = 1;
  std::mt19937_64 random(options.seed);
  while (result.kills < options.kills && result.lost == 0) {
    const auto folder = options.folder / ("run" + std::to_string(result.runs++));
    fs::create_directories(folder);
    run_with_kills(folder, options, whole.count() / 5, random, result);
    if (result.lost == 0) result.different += differences(folder, reference);
  }
  return result;
}

}  // namespace torchlore::testing
