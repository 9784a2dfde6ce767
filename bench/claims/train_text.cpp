// The main job: how soon the loop with torchlore reaches the plain loop's final held-out loss.
#include "harness/train_text.hpp"

#include <fmt/format.h>

#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "claim.hpp"
#include "claim_paths.hpp"
#include "harness/statistics.hpp"

namespace torchlore::claims {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

/// The plain side's time is that of its whole run: its last loss is the target.
double seconds_to_target(const Json& report, const char* side) {
  const auto& seconds = report.at("sides").at(side).at("seconds_to_target");
  return seconds.is_null() ? std::numeric_limits<double>::infinity() : seconds.get<double>();
}

std::string describe(const Json& report) {
  const auto part = [&](const char* side) {
    const auto& s = report.at("sides").at(side);
    return fmt::format("{} ({}) {:.1f} s, loss {:.3f}", side, s.at("precision").get<std::string>(),
                       seconds_to_target(report, side), s.at("final_loss").get<double>());
  };
  return fmt::format("seed {}: {}, {}", report.at("seed").get<int>(), part("plain"),
                     part("torchlore"));
}

void measure(Context& context) {
  Line line{
      .setting = "examples/train_text as it is, 3 seeds",
      .baseline = "the plain LibTorch loop in the same program, same model, batches and schedule",
      .bar = 0.60};
  if (!fs::exists(TORCHLORE_TRAIN_TEXT)) {
    line.note = "the example train_text is not built";
    return context.report(line);
  }
  std::vector<double> ours;
  std::vector<double> plain;
  for (int seed = 1; seed <= (context.quick() ? 1 : 3); ++seed) {
    const Json report = run_train_text(context, seed);
    ours.push_back(seconds_to_target(report, "torchlore"));
    plain.push_back(seconds_to_target(report, "plain"));
    line.note += (line.note.empty() ? "" : "; ") + describe(report);
    if (seed == 1) {
      line.setting += fmt::format(", {} steps of {} bytes", report.at("steps").get<int>(),
                                  report.at("tokens_per_step").get<int>());
    }
  }
  line.note += "; the interval is the range of the seeds";
  line.measured = ratio(ours, plain);
  context.report(line);
}

const bool registered = add_claim({.name = "train_text",
                                   .group = "step",
                                   .promise = "time to the plain run's final loss on real text",
                                   .measure = measure,
                                   .minutes = 12});

}  // namespace
}  // namespace torchlore::claims
