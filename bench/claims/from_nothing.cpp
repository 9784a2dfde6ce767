// The two commands of the README on a fresh copy of the repository: set-up, build, and the main job or
// all tests. Measured only when asked for by name: it downloads a LibTorch and builds everything.
#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>

#include "claim.hpp"
#include "claim_paths.hpp"
#include "harness/child.hpp"

namespace torchlore::claims {
namespace {

namespace fs = std::filesystem;

double minutes_of(const std::vector<std::string>& command) {
  const ChildUse use = run_command(as_user(command));
  TORCH_CHECK(use.exit_code == 0, command.back(), " failed; its output is above");
  return use.wall_seconds / 60;
}

void measure_script(Context& context, const std::string& script, double bar) {
  const fs::path copy =
      fs::temp_directory_path() / fmt::format("torchlore_from_nothing_{}", getpid());
  minutes_of({"git", "clone", "--quiet", "--no-hardlinks", TORCHLORE_SOURCE_DIR, copy.string()});
  const double minutes =
      minutes_of({"env", "-u", "CMAKE_PREFIX_PATH", "-u", "Torch_DIR", "CCACHE_DISABLE=1", "cmake",
                  "-P", (copy / "cmake" / (script + ".cmake")).string()});
  fs::remove_all(copy);
  context.report(
      {.part = script,
       .setting = fmt::format("cmake -P cmake/{}.cmake in a fresh clone", script),
       .baseline = "a fixed ceiling",
       .measured = {minutes},
       .unit = "min",
       .bar = bar,
       .note =
           "one run, no compiler cache; takes what the system already has, downloads included"});
}

void measure(Context& context) {
  measure_script(context, "demo", 15);
  measure_script(context, "test", 30);
}

const bool registered = add_claim({.name = "from_nothing",
                                   .group = "core",
                                   .promise = "demo and tests on a fresh copy of the repository",
                                   .measure = measure,
                                   .minutes = 45,
                                   .threads_matter = false,
                                   .only_by_name = true});

}  // namespace
}  // namespace torchlore::claims
