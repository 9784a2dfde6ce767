// What the claims on retry, split and 16-bit memory run in a process of their own:
//   torchlore_recovery_worker faults <threads> <quick>
//     fails every allocation of a retried step; prints what became of it
//   torchlore_recovery_worker jobs <threads> <quick> <mean seconds of a fault> <retries>
//     jobs under faults that last; prints how many came through, without and with retry
//   torchlore_recovery_worker limit <threads> <quick> <megabytes>
//     run_or_split under RLIMIT_DATA; prints what it found, what fits, and the gradient's error
//   torchlore_recovery_worker autocast <threads> <quick> <dtype>
//     two steps of the GPT; prints the growth of the resident peak
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <malloc.h>
#include <sys/resource.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <random>
#include <string>

#include "../../../examples/train_text/gpt.hpp"
#include "../../../tests/support/fake_clock.hpp"
#include "../../../tests/support/faulty_allocator.hpp"
#include "../harness/memory.hpp"
#include "torchlore/core/module_state.hpp"
#include "torchlore/core/rng.hpp"
#include "torchlore/memory/run_or_split.hpp"
#include "torchlore/precision/autocast.hpp"

namespace torchlore::claims {
namespace {

namespace nn = torch::nn;
using testing::FakeClock;
using testing::FaultyAllocator;

/// A training with all that a step may change: buffers, random numbers, an optimizer's state.
struct Training {
  explicit Training(int64_t layers) {
    at::manual_seed(1);
    for (int64_t i = 0; i < layers; ++i) {
      net->push_back(nn::Linear(32, 32));
      net->push_back(nn::BatchNorm1d(32));
      net->push_back(nn::GELU());
      net->push_back(nn::Dropout(0.2));
    }
    optimizer = std::make_unique<torch::optim::AdamW>(net->parameters());
    x = at::randn({16, 32});
    at::manual_seed(2);
  }
  void step() {
    net->forward(x).square().mean().backward();
    optimizer->step();
  }
  std::vector<at::Tensor> everything() const {
    std::vector<at::Tensor> all;
    for (const auto& [name, tensor] : module_state_dict(*net)) all.push_back(tensor.clone());
    for (const auto& p : net->parameters()) {
      all.push_back(p.grad().defined() ? p.grad().clone() : at::Tensor());
      const auto found = optimizer->state().find(p.unsafeGetTensorImpl());
      if (found == optimizer->state().end()) continue;
      auto& state = static_cast<torch::optim::AdamWParamState&>(*found->second);
      all.push_back(state.exp_avg().clone());
      all.push_back(state.exp_avg_sq().clone());
      all.push_back(at::scalar_tensor(state.step(), at::kLong));
    }
    for (const auto& [name, state] : RngState::capture().state_dict()) all.push_back(state);
    return all;
  }
  RetryOptions options(FakeClock& time) const {
    return {.model = &*net, .optimizers = {optimizer.get()}, .clock = time.clock()};
  }
  nn::Sequential net;
  std::unique_ptr<torch::optim::AdamW> optimizer;
  at::Tensor x;
};

bool equal(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i].defined() != b[i].defined()) return false;
    if (a[i].defined() && !a[i].equal(b[i])) return false;
  }
  return true;
}

/// The n-th step of a training, retried; faults begin at allocation `fails_at` of it.
struct Faults {
  int64_t allocations = 0, unlike = 0, lost = 0;
};

void fault_everywhere(int64_t layers, int64_t steps_before, Faults& faults) {
  auto& allocator = FaultyAllocator::install();
  const auto prepared = [&] {
    auto training = std::make_unique<Training>(layers);
    for (int64_t i = 0; i < steps_before; ++i) training->step();
    return training;
  };
  const auto plain = prepared();
  plain->step();
  const auto expected = plain->everything();
  for (int64_t i = 0;; ++i) {
    FakeClock time;
    const auto training = prepared();
    allocator.fail_at(i);
    try {
      retry([&] { training->step(); }, training->options(time));
    } catch (const std::exception&) {
      ++faults.lost;
    }
    allocator.never_fail();
    if (time.waits.empty()) return;  // there are no more allocations
    ++faults.allocations;
    faults.unlike += equal(training->everything(), expected) ? 0 : 1;
  }
}

void every_allocation(bool quick) {
  Faults faults;
  for (const int64_t steps_before : {0, 1}) {
    fault_everywhere(quick ? 1 : 4, steps_before, faults);
  }
  std::printf("%lld %lld %lld\n", static_cast<long long>(faults.allocations),
              static_cast<long long>(faults.unlike), static_cast<long long>(faults.lost));
}

/// When memory is short, on a clock: faults begin at random, and last for a random time.
class Shortage {
 public:
  Shortage(uint64_t seed, double rate, double mean) : random_(seed), begin_(rate), last_(1 / mean) {
    next();
  }
  /// Whether it is short at some time in [from, to); times only grow.
  bool meets(double from, double to) {
    while (end_ <= from) next();
    return start_ < to;
  }

 private:
  void next() {
    start_ = end_ + begin_(random_);
    end_ = start_ + last_(random_);
  }
  std::mt19937_64 random_;
  std::exponential_distribution<double> begin_, last_;
  double start_ = 0, end_ = 0;
};

constexpr double kStepSeconds = 0.2;
constexpr int kSteps = 50;

struct Job {
  bool finished = false, same = false;
};

/// A job of 50 steps of 0.2 s on a clock. A step that meets a shortage fails at a random allocation.
Job run_job(uint64_t seed, double rate, double mean, std::optional<int64_t> retries,
            const std::vector<at::Tensor>& expected, int64_t allocations) {
  auto& allocator = FaultyAllocator::install();
  Shortage shortage(seed, rate, mean);
  std::mt19937_64 random(seed + 1'000'000);
  std::uniform_real_distribution<double> chance(0, 1);
  FakeClock time;
  Training training(1);
  auto options = training.options(time);
  options.max_retries = retries.value_or(0);
  options.clock.random = [&] { return chance(random); };
  const auto step = [&] {
    const double from = time.now.count();
    time.now += Seconds(kStepSeconds);
    if (shortage.meets(from, time.now.count())) {
      allocator.fail_at(static_cast<int64_t>(chance(random) * static_cast<double>(allocations)));
    }
    training.step();
    allocator.never_fail();
  };
  try {
    for (int i = 0; i < kSteps; ++i) {
      retry(
          [&] {
            allocator.never_fail();
            step();
          },
          options);
    }
  } catch (const c10::OutOfMemoryError&) {
    allocator.never_fail();
    return {};
  }
  return {true, equal(training.everything(), expected)};
}

void jobs(bool quick, double mean, int64_t retries) {
  auto& allocator = FaultyAllocator::install();
  // No shortage begins within a job with a probability of 0.72.
  const double rate = -std::log(0.72) / (kSteps * kStepSeconds);
  const int count = quick ? 10 : 400;
  Training plain(1);
  plain.step();
  allocator.never_fail();
  plain.step();
  const auto allocations = allocator.count();
  for (int i = 2; i < kSteps; ++i) plain.step();
  const auto expected = plain.everything();
  int without = 0, with = 0, unlike = 0;
  for (int seed = 1; seed <= count; ++seed) {
    const auto s = static_cast<uint64_t>(seed);
    without += run_job(s, rate, mean, std::nullopt, expected, allocations).finished ? 1 : 0;
    const auto job = run_job(s, rate, mean, retries, expected, allocations);
    with += job.finished ? 1 : 0;
    unlike += job.finished && !job.same ? 1 : 0;
  }
  std::printf("%d %d %d %d\n", count, without, with, unlike);
}

/// Private memory of the process now, which RLIMIT_DATA bounds.
int64_t data_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmData:")) return std::stoll(line.substr(7)) * 1024;
  }
  return 0;
}

struct Perceptron {
  explicit Perceptron(int64_t width) {
    at::manual_seed(3);
    for (int i = 0; i < 6; ++i) {
      net->push_back(nn::Linear(width, width));
      net->push_back(nn::Tanh());  // not oneDNN, which keeps code for each size
    }
  }
  at::Tensor loss(const at::Tensor& x) { return net->forward(x).square().mean(); }
  std::vector<at::Tensor> take_gradients() {
    std::vector<at::Tensor> all;
    for (const auto& p : net->parameters()) {
      all.push_back(p.grad().clone());
      p.mutable_grad() = at::Tensor();
    }
    return all;
  }
  nn::Sequential net;
};

double worst_error(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const auto error = (a[i] - b[i]).abs().max() / b[i].abs().max();
    worst = std::max(worst, error.item<double>());
  }
  return worst;
}

/// Whether two parts of so many examples fit, one after the other, by plain trial.
bool fits(Perceptron& model, const at::Tensor& x, int64_t size) {
  bool fitted = true;
  try {
    for (const int64_t from : {int64_t{0}, size}) {
      (model.loss(x.slice(0, from, from + size)) / 2).backward();
    }
  } catch (const std::exception& error) {
    if (classify_error(error) != ErrorKind::out_of_memory) throw;
    fitted = false;
  }
  for (const auto& p : model.net->parameters()) p.mutable_grad() = at::Tensor();
  return fitted;
}

void under_limit(bool quick, int64_t megabytes) {
  // Each tensor in a mapping of its own: what is freed counts as free at once.
  ::mallopt(M_MMAP_THRESHOLD, 65'536);
  const int64_t batch = quick ? 2048 : 4096, width = 256;
  Perceptron model(width);
  const auto x = at::randn({batch, width});
  model.loss(x).backward();  // also starts all threads
  const auto expected = model.take_gradients();
  const auto limit = static_cast<rlim_t>(data_bytes() + megabytes * 1'048'576);
  const rlimit limits{limit, limit};
  if (::setrlimit(RLIMIT_DATA, &limits) != 0) std::abort();
  BatchSplitter splitter({.sizes = {.search_every = 2}});
  double worst = 0;
  int64_t parts = 0;
  for (int i = 0; i < (quick ? 16 : 30); ++i) {
    parts = splitter(x, [&](const at::Tensor& part) { return model.loss(part); }).parts;
    worst = std::max(worst, worst_error(model.take_gradients(), expected));
  }
  int64_t low = 0, high = batch + 1;  // what fits, and what does not
  while (high - low > std::max<int64_t>(1, low / 100)) {
    const int64_t middle = low + (high - low) / 2;
    (fits(model, x, middle) ? low : high) = middle;
  }
  std::printf("%lld %lld %lld %.3e\n", static_cast<long long>(splitter.sizes().fits()),
              static_cast<long long>(low), static_cast<long long>(parts), worst);
}

void autocast_peak(bool quick, const std::string& dtype) {
  const int64_t batch = quick ? 1 : 8, context = 128, vocabulary = 256;
  at::manual_seed(1);
  text::GPT model(text::GPTOptions{.vocabulary = vocabulary, .context = context});
  torch::optim::AdamW optimizer(model->parameters());
  const auto ids = at::randint(vocabulary, {batch, context + 1});
  const auto step = [&](int64_t examples) {
    const auto x = ids.slice(0, 0, examples);
    at::Tensor loss;
    {
      const Autocast amp(at::kCPU, dtype == "float16" ? at::kHalf : at::kBFloat16,
                         {.enabled = dtype != "float32"});
      const auto logits = model->forward(x.slice(1, 0, context));
      loss = nn::functional::cross_entropy(logits.flatten(0, 1), x.slice(1, 1).flatten());
    }
    optimizer.zero_grad();
    loss.backward();
    optimizer.step();
  };
  const int64_t start = resident_bytes();
  reset_peak_rss();
  for (int i = 0; i < 2; ++i) step(batch);
  std::printf("%lld\n", static_cast<long long>(peak_rss_bytes() - start));
}

}  // namespace
}  // namespace torchlore::claims

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  at::set_num_threads(std::stoi(arguments.at(1)));
  const bool quick = arguments.at(2) == "1";
  const auto& mode = arguments.at(0);
  if (mode == "faults") torchlore::claims::every_allocation(quick);
  if (mode == "jobs") {
    torchlore::claims::jobs(quick, std::stod(arguments.at(3)), std::stoll(arguments.at(4)));
  }
  if (mode == "limit") torchlore::claims::under_limit(quick, std::stoll(arguments.at(3)));
  if (mode == "autocast") torchlore::claims::autocast_peak(quick, arguments.at(3));
  return 0;
}
