// What ε costs to compute.
#include <functional>

#include "claim.hpp"
#include "harness/statistics.hpp"
#include "harness/timing.hpp"
#include "torchlore/privacy/prv.hpp"
#include "torchlore/privacy/rdp.hpp"

namespace torchlore::claims {
namespace {

void report_time(Context& context, const char* part, const std::string& setting, double bar,
                 const std::function<void()>& work) {
  auto seconds = interleave({timed(part, work)}, Sampling::of(context)).front();
  for (double& s : seconds) s *= 1e3;
  context.report({.part = part,
                  .setting = setting,
                  .baseline = "nothing; other libraries take 15 to 280 ms",
                  .measured = median_estimate(seconds),
                  .unit = "ms",
                  .bar = bar,
                  .note = "noise multiplier 1.5, sample rate 0.04, 2,250 steps, delta 1e-5"});
}

void measure(Context& context) {
  const PrivacyLedger ledger({{1.5, 0.04, 2250}});
  double sink = 0;
  report_time(context, "prv", "bounds of ε, error 0.1", 20,
              [&] { sink += prv_epsilon(ledger, 1e-5, {.epsilon_error = 0.1}).upper; });
  report_time(context, "rdp", "upper bound of ε, the default orders", 1,
              [&] { sink += rdp_epsilon(ledger, 1e-5).value; });
  if (!(sink > 0)) context.say("no ε came out");
}

const bool registered = add_claim({.name = "privacy_accounting",
                                   .group = "privacy",
                                   .promise = "epsilon within milliseconds",
                                   .measure = measure,
                                   .minutes = 0.2,
                                   .threads_matter = false});

}  // namespace
}  // namespace torchlore::claims
