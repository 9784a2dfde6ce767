#pragma once

#include <cstdint>
#include <limits>
#include <string>

/// How a figure becomes a claim.
///
/// One file in this folder is one claim: a function that measures and reports one line per bar, and
/// one registration. The file is found by the build, and the claim by `torchlore_claims --list`.
///
/// ```cpp
/// void measure(Context& context) {
///   const int64_t steps = context.quick() ? 10 : 1000;             // fixed before the run
///   const auto [ours, plain] = …;                                    // see harness/timing.hpp
///   context.report({.setting = "784-64-10, batch 32", .baseline = "bare LibTorch loop",
///                   .measured = ratio(ours, plain), .bar = 1.10});
/// }
/// const bool registered = add_claim({.name = "step_overhead", .group = "step",
///                                    .promise = "…", .measure = measure});
/// ```
namespace torchlore::claims {

/// A measured value and the bounds of its 95 % interval. NaN: not measured.
struct Estimate {
  double value = std::numeric_limits<double>::quiet_NaN();
  double low = value;
  double high = value;
};

/// A line with this bar is published without a promise.
inline constexpr double kNoBar = std::numeric_limits<double>::infinity();

/// One bar and what was measured against it. Every bar is a ceiling: a line holds if
/// `measured.value <= bar`.
struct Line {
  std::string part = {};      ///< which of the claim's bars: the line is called "claim/part"
  std::string setting = {};   ///< sizes, dtypes, seeds; the number of threads is added
  std::string baseline = {};  ///< what it is compared with
  Estimate measured = {};
  std::string unit = "x";  ///< "x": a ratio, ours over the baseline
  double bar = 0;
  std::string note = {};  ///< what a reader must know to judge the figure
};

/// What a claim is given to measure with.
class Context {
 public:
  virtual ~Context() = default;
  /// Small sizes and few repeats: does it run at all? Such lines are marked and never kept.
  virtual bool quick() const = 0;
  /// Threads on both sides.
  virtual int64_t threads() const = 0;
  /// Prints the line as JSON, and keeps it where the caller asked for.
  virtual void report(const Line& line) = 0;
  /// Tells a person what is going on.
  virtual void say(const std::string& text) const = 0;
};

/// A claim as it is registered.
struct Claim {
  std::string name = {};     ///< the file's name without .cpp; an ending tells several apart
  std::string group = {};    ///< the module
  std::string promise = {};  ///< one line of plain English, for --list
  void (*measure)(Context&) = nullptr;
  double minutes = 1;  ///< of a full run, roughly; --short leaves out what takes more than 2
  bool threads_matter = true;  ///< false: the number of threads is not part of the setting
  bool only_by_name = false;   ///< left out by --all and --group
};

/// Registers a claim; call it from a namespace-scope initialiser.
bool add_claim(Claim claim);

}  // namespace torchlore::claims
