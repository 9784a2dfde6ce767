// A run killed at random instants, and what came of it.
#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>
#include <sstream>

#include "claim.hpp"
#include "claim_paths.hpp"
#include "harness/child.hpp"

namespace torchlore::claims {
namespace {

void measure(Context& context) {
  const int64_t wanted = context.quick() ? 20 : 1000;
  const auto folder =
      std::filesystem::temp_directory_path() / fmt::format("torchlore_kill_resume_{}", getpid());
  Child worker({TORCHLORE_KILL_RESUME_WORKER, folder.string(), std::to_string(wanted)});
  std::istringstream counts(worker.read_line().value_or(""));
  int64_t runs = 0, kills = 0, while_writing = 0, lost = 0, different = 0;
  counts >> runs >> kills >> while_writing >> lost >> different;
  TORCH_CHECK(counts && worker.wait().exit_code == 0,
              "the worker of kill_resume failed; its errors "
              "are above");

  const auto setting = fmt::format(
      "at least {} SIGKILLs at random instants; 90 steps a run, saved every 3: AdamW, dropout, "
      "batch "
      "norm, random augmentation, loss scaler, shuffled sampler",
      wanted);
  const auto note = fmt::format("{} kills of {} runs; {} left a half-written file behind", kills,
                                runs, while_writing);
  const auto line = [&](const char* part, const char* unit, int64_t count) {
    const auto value = static_cast<double>(count);
    context.report({.part = part,
                    .setting = setting,
                    .baseline = "the same run, never killed",
                    .measured = {value, value, value},
                    .unit = unit,
                    .bar = 0,
                    .note = note});
  };
  line("lost", "runs that could not go on", lost);
  line("different", "losses and final weights that differ in any bit", different);
}

const bool registered = add_claim({.name = "kill_resume",
                                   .group = "core",
                                   .promise = "a run killed at any instant goes on bit for bit",
                                   .measure = measure,
                                   .minutes = 1,
                                   .threads_matter = false});

}  // namespace
}  // namespace torchlore::claims
