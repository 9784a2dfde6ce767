#pragma once

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "progress.hpp"
#include "record.hpp"
#include "settings.hpp"

namespace text {

/// The loss both sides are timed to: the plain run's last one.
inline std::optional<double> target_loss(const std::vector<Record>& records) {
  for (const auto& r : records) {
    if (r.side == "plain" && r.done) return r.curve.back().loss;
  }
  return std::nullopt;
}

inline double tokens_per_second(const Record& r, const Settings& s) {
  return static_cast<double>(r.step * s.tokens_per_step()) / r.seconds;
}

inline void print_report(const std::vector<Record>& records, const Settings& s) {
  const auto target = target_loss(records);
  fmt::print("\n{:<11}{:>10}{:>7}{:>15}{:>15}{:>12}{:>13}\n", "", "precision", "steps",
             "held-out loss", target ? fmt::format("time to {:.3f}", *target) : "time", "tokens/s",
             "peak memory");
  for (const auto& r : records) {
    const auto reached = target ? seconds_to(r, *target) : r.seconds;
    fmt::print("{:<11}{:>10}{:>7}{:>15.3f}{:>15}{:>12.0f}{:>13}\n", r.side, r.precision, r.step,
               r.curve.back().loss, reached ? fmt::format("{:.1f} s", *reached) : "not reached",
               tokens_per_second(r, s), fmt::format("{} MiB", r.peak_memory >> 20));
  }
  if (records.size() == 2 && target && !s.quick) {
    const auto plain = seconds_to(records[0], *target), ours = seconds_to(records[1], *target);
    if (plain && ours) fmt::print("torchlore needs {:.2f} of the plain time.\n", *ours / *plain);
  }
  fmt::print(
      "Loss in nats a byte, both sides evaluated in float32. Times hold batches, steps and saves, "
      "not evaluations.\nPeak memory is that of the side's own process.\n");
}

/// The bytes as a terminal can show them.
inline std::string printable(const std::string& bytes) {
  std::string out;
  for (const char c : bytes) {
    const auto code = static_cast<unsigned char>(c);
    const bool plain = code == '\n' || (code >= 32 && code < 127);
    out += plain ? std::string(1, c) : fmt::format("\\x{:02x}", code);
  }
  return out;
}

inline void print_sample(const Record& r) {
  fmt::print("\nWritten by the model after the first {} bytes (held-out text):\n{}\n", 32,
             printable(r.sample));
}

inline std::string json_number(std::optional<double> value) {
  return value ? fmt::format("{:.6g}", *value) : "null";
}

/// One JSON object: the settings, and each side with its curve.
inline std::string to_json(const std::vector<Record>& records, const Settings& s) {
  const auto target = target_loss(records);
  std::string sides;
  for (const auto& r : records) {
    std::string curve;
    for (const auto& p : r.curve) {
      curve += fmt::format(R"({}{{"step":{},"seconds":{:.4f},"tokens":{},"loss":{:.6f}}})",
                           curve.empty() ? "" : ",", p.step, p.seconds,
                           p.step * s.tokens_per_step(), p.loss);
    }
    sides += fmt::format(R"({}"{}":{{"precision":"{}","parameters":{},"steps":{},"seconds":{:.4f},)"
                         R"("tokens_per_second":{:.1f},"peak_memory_bytes":{},"final_loss":{:.6f},)"
                         R"("seconds_to_target":{},"curve":[{}]}})",
                         sides.empty() ? "" : ",", r.side, r.precision, r.parameters, r.step,
                         r.seconds, tokens_per_second(r, s), r.peak_memory, r.curve.back().loss,
                         json_number(target ? seconds_to(r, *target) : std::nullopt), curve);
  }
  return fmt::format(
      R"({{"steps":{},"tokens_per_step":{},"layers":{},"width":{},"heads":{},"context":{},)"
      R"("batch":{},"accumulate":{},"seed":{},"threads":{},"target_loss":{},"sides":{{{}}}}})"
      "\n",
      s.steps, s.tokens_per_step(), s.layers, s.width, s.heads, s.context, s.batch, s.accumulate,
      s.seed, s.threads > 0 ? s.threads : at::get_num_threads(), json_number(target), sides);
}

}  // namespace text
