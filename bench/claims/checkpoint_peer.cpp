// Checkpointing every block against torch.utils.checkpoint on the same model.
#include <ATen/Functions.h>
#include <fmt/format.h>

#include <sstream>

#include "claim.hpp"
#include "claim_paths.hpp"
#include "harness/child.hpp"
#include "harness/peer.hpp"
#include "harness/timing.hpp"
#include "models/checkpointed.hpp"

namespace torchlore::claims {
namespace {

using models::CheckpointSizes;

std::string setting_of(const CheckpointSizes& s) {
  return fmt::format("{} encoder layers d{}, {} heads, feed-forward {}, dropout 0.1, T={} B={}",
                     s.layers, s.width, s.heads, s.feedforward, s.length, s.batch);
}

std::vector<at::Tensor> gradients(models::TransformerStack& model, const at::Tensor& x,
                                  bool checkpointed) {
  at::manual_seed(7);
  checkpoint_step(model, x, checkpointed);
  std::vector<at::Tensor> result;
  for (const auto& p : model->parameters()) result.push_back(p.grad().clone());
  return result;
}

/// Gradient tensors that differ from those without checkpointing in any bit.
int64_t unlike_gradients(models::TransformerStack& model, const at::Tensor& x) {
  const auto plain = gradients(model, x, false);
  const auto ours = gradients(model, x, true);
  int64_t unlike = 0;
  for (size_t i = 0; i < plain.size(); ++i) unlike += ours[i].equal(plain[i]) ? 0 : 1;
  model->zero_grad();
  return unlike;
}

/// What a step's peak is above what was resident before it, in a process of its own.
struct Peak {
  double resident = 0;
  double allocator = 0;
};

/// How malloc gets memory, on both sides alike.
struct Malloc {
  const char* part;
  const char* note;
  /// Each large tensor is mapped on its own, so that what is freed leaves at once and the resident
  /// peak is that of the tensors. Otherwise glibc's defaults, whose heap keeps what it cannot reuse.
  bool mapped;
};
constexpr Malloc kMallocs[] = {{"peak", "malloc mapping each tensor on its own", true},
                               {"peak, glibc's malloc as it is", "glibc's malloc as it is", false}};

Peak our_peak(const Context& context, bool checkpointed, const Malloc& malloc) {
  std::vector<std::string> command{"env", "-u", "MALLOC_TRIM_THRESHOLD_", "-u",
                                   "MALLOC_MMAP_THRESHOLD_"};
  if (malloc.mapped) command.push_back("MALLOC_MMAP_THRESHOLD_=65536");
  command.insert(command.end(),
                 {TORCHLORE_CHECKPOINT_WORKER, "peak", std::to_string(context.threads()),
                  context.quick() ? "1" : "0", checkpointed ? "1" : "0"});
  Child worker(command);
  std::istringstream answer(worker.read_line().value_or(""));
  Peak peak;
  answer >> peak.resident >> peak.allocator;
  TORCH_CHECK(answer && worker.wait().exit_code == 0,
              "the worker of checkpoint_peer failed; its errors are above");
  return peak;
}

std::vector<std::string> peer_arguments(const CheckpointSizes& sizes, bool checkpointed,
                                        const Malloc* memory = nullptr) {
  auto all = sizes.arguments();
  all.insert(all.end(), {"--checkpointed", checkpointed ? "1" : "0"});
  if (memory != nullptr) all.insert(all.end(), {"--memory", memory->mapped ? "1" : "2"});
  return all;
}

double peer_peak(const Context& context, const CheckpointSizes& sizes, bool checkpointed,
                 const Malloc& malloc) {
  Peer peer(context, "checkpoint.py", peer_arguments(sizes, checkpointed, &malloc));
  return peer.contender("peak").run(1);
}

std::vector<double> divided(const std::vector<double>& a, const std::vector<double>& b) {
  std::vector<double> result;
  for (size_t i = 0; i < a.size(); ++i) result.push_back(a[i] / b[i]);
  return result;
}

void report_memory(Context& context, const CheckpointSizes& sizes, const Malloc& malloc,
                   bool installed) {
  const auto ours = our_peak(context, true, malloc);
  const auto plain = our_peak(context, false, malloc);
  const double theirs = installed ? peer_peak(context, sizes, true, malloc) : 0;
  const double theirs_plain = installed ? peer_peak(context, sizes, false, malloc) : 0;
  constexpr double kMiB = 1048576;
  context.report(
      {.part = malloc.part,
       .setting = setting_of(sizes),
       .baseline = "torch.utils.checkpoint(use_reentrant=False)",
       .measured = installed ? ratio({ours.resident}, {theirs}) : Estimate{},
       .bar = 1.0,
       .note = installed
                   ? fmt::format(
                         "growth of the resident peak (VmHWM) over one step, each side in a fresh "
                         "process after a step on 8 tokens, {}: "
                         "{:.0f} MiB (plain {:.0f}) against "
                         "{:.0f} MiB (plain {:.0f}); the parameters' gradients are part of it; "
                         "LibTorch's CPU allocator alone: {:.0f} MiB (plain {:.0f})",
                         malloc.note, ours.resident / kMiB, plain.resident / kMiB, theirs / kMiB,
                         theirs_plain / kMiB, ours.allocator / kMiB, plain.allocator / kMiB)
                   : kPeerMissing});
}

void measure(Context& context) {
  const auto sizes = CheckpointSizes::of(context.quick());
  at::manual_seed(1);
  models::TransformerStack model(models::TransformerStackOptions{
      sizes.layers, sizes.width, sizes.heads, sizes.feedforward, 0.1});
  const auto x = at::randn({sizes.length, sizes.batch, sizes.width});

  const auto unlike = static_cast<double>(unlike_gradients(model, x));
  context.report({.part = "gradients",
                  .setting = setting_of(sizes),
                  .baseline = "the same model without checkpointing",
                  .measured = {unlike, unlike, unlike},
                  .unit = "tensors",
                  .bar = 0,
                  .note = "gradients that differ in any bit"});

  Peer plain_peer(context, "checkpoint.py", peer_arguments(sizes, false));
  const bool installed = plain_peer.installed();
  for (const auto& malloc : kMallocs) report_memory(context, sizes, malloc, installed);

  std::vector<Contender> contenders = {timed("ours", [&] { checkpoint_step(model, x, true); }),
                                       timed("plain", [&] { checkpoint_step(model, x, false); })};
  Peer peer(context, "checkpoint.py", peer_arguments(sizes, true));
  if (installed) {
    contenders.push_back(peer.contender("Python's"));
    contenders.push_back(plain_peer.contender("its plain"));
  }
  const Sampling sampling{.rounds = context.quick() ? 3 : 7, .warmup = 1, .min_seconds = 0.001};
  const auto seconds = interleave(contenders, sampling);
  const auto over_plain = divided(seconds[0], seconds[1]);
  const auto theirs_over_plain =
      installed ? divided(seconds[2], seconds[3]) : std::vector<double>();
  context.report(
      {.part = "time",
       .setting = setting_of(sizes),
       .baseline = "torch.utils.checkpoint(use_reentrant=False), " + plain_peer.version(),
       .measured = installed ? ratio(over_plain, theirs_over_plain) : Estimate{},
       .bar = 1.0,
       .note = installed
                   ? fmt::format("each side over its own plain step: {:.3f} against {:.3f}; "
                                 "the Python layer computes attention as the C++ one does; {}",
                                 median(over_plain), median(theirs_over_plain),
                                 absolute_times(contenders, seconds))
                   : kPeerMissing});
}

const bool registered =
    add_claim({.name = "checkpoint_peer",
               .group = "memory",
               .promise = "checkpointing every block against Python's, in memory and time",
               .measure = measure,
               .minutes = 6});

}  // namespace
}  // namespace torchlore::claims
