// What including torchlore costs: user seconds of the compiler at -O0.
#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "claim.hpp"
#include "claim_paths.hpp"
#include "harness/child.hpp"
#include "harness/statistics.hpp"

namespace torchlore::claims {
namespace {

namespace fs = std::filesystem;

double compile_seconds(const std::string& header) {
  const fs::path source =
      fs::temp_directory_path() / fmt::format("torchlore_claims_{}.cpp", getpid());
  std::ofstream(source) << "#include <" << header << ">\n";
  const ChildUse use =
      run_command({TORCHLORE_COMPILER, "-std=c++20", "-O0", "@" TORCHLORE_COMPILE_FLAGS, "-c",
                   source.string(), "-o", "/dev/null"});
  fs::remove(source);
  TORCH_CHECK(use.exit_code == 0, "<", header,
              "> does not compile; the compiler's errors are above");
  return use.user_seconds;
}

std::vector<std::string> headers_of(const std::string& module) {
  std::vector<std::string> headers;
  for (const auto& entry : fs::directory_iterator(TORCHLORE_INCLUDE_DIR "/torchlore/" + module)) {
    if (entry.path().extension() == ".hpp") {
      headers.push_back("torchlore/" + module + "/" + entry.path().filename().string());
    }
  }
  std::sort(headers.begin(), headers.end());
  return headers;
}

// The slowest header of a module: found in one pass over all, then timed again.
void measure_module(Context& context, const std::string& module) {
  auto headers = headers_of(module);
  if (headers.empty()) return;
  if (context.quick()) headers.resize(1);
  std::pair<double, std::string> slowest;
  for (const auto& header : headers) {
    slowest = std::max(slowest, std::pair(compile_seconds(header), header));
  }
  std::vector<double> seconds;
  for (int i = 0; i < (context.quick() ? 1 : 7); ++i) {
    seconds.push_back(compile_seconds(slowest.second));
  }
  context.report(
      {.part = "headers_of_" + module,
       .setting = fmt::format("the slowest of {} headers alone, -O0, user time", headers.size()),
       .baseline = "a fixed ceiling",
       .measured = median_estimate(seconds),
       .unit = "s",
       .bar = 6.0,
       .note = "slowest: " + slowest.second});
}

void measure_umbrella(Context& context) {
  std::vector<double> extra;
  std::vector<double> plain;
  for (int i = 0; i < 7; ++i) {
    plain.push_back(compile_seconds("torch/torch.h"));
    extra.push_back(compile_seconds("torchlore/torchlore.hpp") - plain.back());
  }
  context.report({.part = "umbrella",
                  .setting = "torchlore/torchlore.hpp less torch/torch.h, -O0, user time",
                  .baseline = "torch/torch.h",
                  .measured = median_estimate(extra),
                  .unit = "s",
                  .bar = 1.5,
                  .note = fmt::format("torch/torch.h alone: {:.3g} s", median(plain))});
}

void measure(Context& context) {
  for (const char* module : {"core", "precision", "gradient"}) {
    if (fs::exists(std::string(TORCHLORE_INCLUDE_DIR "/torchlore/") + module)) {
      measure_module(context, module);
    }
  }
  if (!context.quick()) measure_umbrella(context);
}

const bool registered = add_claim({.name = "compile_time",
                                   .group = "core",
                                   .promise = "what including torchlore costs the compiler",
                                   .measure = measure,
                                   .minutes = 6,
                                   .threads_matter = false});

}  // namespace
}  // namespace torchlore::claims
