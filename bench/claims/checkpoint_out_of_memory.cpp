// Memory that runs out anywhere in a checkpointed step.
#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <sstream>

#include "claim.hpp"
#include "claim_paths.hpp"
#include "harness/child.hpp"

namespace torchlore::claims {
namespace {

void measure(Context& context) {
  Child worker({TORCHLORE_CHECKPOINT_WORKER, "out_of_memory", std::to_string(context.threads()),
                context.quick() ? "1" : "0"});
  std::istringstream counts(worker.read_line().value_or(""));
  int64_t allocations = 0, not_thrown = 0, other_type = 0, leaked = 0, unlike = 0;
  counts >> allocations >> not_thrown >> other_type >> leaked >> unlike;
  TORCH_CHECK(counts && worker.wait().exit_code == 0,
              "the worker of checkpoint_out_of_memory failed; its errors are above");
  const auto line = [&](const char* part, const char* unit, int64_t count, const char* note) {
    const auto value = static_cast<double>(count);
    context.report({.part = part,
                    .setting = fmt::format("{} nn::TransformerEncoderLayer d32 with dropout, each "
                                           "checkpointed; each of {} CPU allocations of a forward "
                                           "and backward pass fails once",
                                           context.quick() ? 2 : 4, allocations),
                    .baseline = "c10::OutOfMemoryError, and the undisturbed step",
                    .measured = {value, value, value},
                    .unit = unit,
                    .bar = 0,
                    .note = note});
  };
  line("untyped", "faults", not_thrown + other_type,
       "faults that did not arrive as c10::OutOfMemoryError");
  line("leaked", "bytes", leaked,
       "held after the step that follows: until then LibTorch's engine keeps a failed backward's "
       "pending gradients");
  line("next_step", "faults", unlike,
       "faults after which the next step's gradients differ in any bit");
}

const bool registered =
    add_claim({.name = "checkpoint_out_of_memory",
               .group = "memory",
               .promise = "memory that runs out anywhere in a checkpointed step does no harm",
               .measure = measure,
               .threads_matter = false});

}  // namespace
}  // namespace torchlore::claims
