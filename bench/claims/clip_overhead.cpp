// What each clipper costs beyond the norm that clipping needs anyway.
#include <fmt/format.h>

#include <string>
#include <vector>

#include "claim.hpp"
#include "harness/parameters.hpp"
#include "harness/timing.hpp"
#include "torchlore/gradient/clip.hpp"

namespace torchlore::claims {
namespace {

// Small, so that the decisions are not lost beside the reading.
constexpr Sizes kSizes{.tensors = 4, .elements = 256};
constexpr double kBar = 5;            // microseconds
constexpr int64_t kHistory = 10'000;  // AutoClip's default, full

void measure(Context& context) {
  struct Way {
    std::string name;
    Clip clip;
  };
  std::vector<Way> ways = {{"norm only", clip::norm(1e6)},
                           {"schedule", clip::norm(clip::threshold::epoch_ramp(
                                            10, 1'000'000, {.low = 1e6, .high = 1e7}))},
                           {"autoclip", clip::autoclip(100, {.history = kHistory})},
                           {"zclip", clip::zclip()},
                           {"value", clip::value(1e6)},
                           {"agc", clip::agc({.clipping = 1e6})}};
  std::vector<std::vector<at::Tensor>> parameters;
  std::vector<Contender> contenders;
  for (size_t i = 0; i < ways.size(); ++i) parameters.push_back(kSizes.parameters());
  for (size_t i = 0; i < ways.size(); ++i) {
    auto& clip = ways[i].clip;
    const auto& p = parameters[i];
    // Every call has another norm, as the steps of a run have.
    const auto clip_once = [&clip, &p, n = 0]() mutable {
      n = (n + 7919) % 9973;
      p[0].grad().mutable_data_ptr<float>()[0] = static_cast<float>(n);
      clip.clip_(p);
    };
    contenders.push_back(timed(ways[i].name, clip_once));
    if (ways[i].name == "autoclip") contenders.back().run(kHistory);  // fills its history
  }
  const auto seconds = interleave(contenders, Sampling::of(context));
  for (size_t i = 1; i < ways.size(); ++i) {
    std::vector<double> beyond;
    for (size_t round = 0; round < seconds[i].size(); ++round) {
      beyond.push_back(1e6 * (seconds[i][round] - seconds[0][round]));
    }
    const bool measures_none = ways[i].name == "value" || ways[i].name == "agc";
    context.report(
        {.part = ways[i].name,
         .setting = kSizes.text() + ", nothing is clipped",
         .baseline = "clip::norm with a fixed threshold on the same gradients",
         .measured = median_estimate(beyond),
         .unit = "µs",
         .bar = kBar,
         .note = fmt::format("{} against {}{}", absolute_times({contenders[i]}, {seconds[i]}),
                             absolute_times({contenders[0]}, {seconds[0]}),
                             measures_none ? "; it measures no norm of all gradients" : "")});
  }
}

const bool registered = add_claim({.name = "clip_overhead",
                                   .group = "gradient",
                                   .promise = "adaptive clippers cost microseconds beyond the norm",
                                   .measure = measure});

}  // namespace
}  // namespace torchlore::claims
