#include "render.hpp"

#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <vector>

namespace torchlore::claims {
namespace {

using Json = nlohmann::json;

const char* const kIntroduction = R"(# Claims

What torchlore promises, and what was measured. A claim that does not hold is listed as such.

This page is made from `bench/claims/results.jsonl` by `cmake -P cmake/claims.cmake`, which measures
everything anew on your machine: do not edit it. `torchlore_claims --list` names the claims, and one file
in `bench/claims/` is one of them.

How to read it:
- A ratio (×) is ours over the baseline: the median of paired samples, taken in turns and in random
  order, so that whatever else the machine does meets both sides. Behind it stands the 95 % interval of
  that median. Ratios carry over to other machines better than times do.
- Both sides have the same number of threads, `OMP_WAIT_POLICY=passive`, and a malloc that keeps freed
  memory. With glibc's defaults code with many temporary tensors, such as LibTorch's C++ optimizers, is
  slower than shown here.
- A figure without a bar is published without a promise.
- "Holds, narrowly": the median reaches the bar, but the interval does not lie wholly below it.
)";

std::string unit_of(const Json& line) {
  const auto unit = line.at("unit").get<std::string>();
  return unit == "x" ? "×" : " " + unit;
}

std::string number(const Json& value) {
  return value.is_null() ? "–" : fmt::format("{:.3g}", value.get<double>());
}

std::string verdict(const Json& line) {
  if (line.at("measured").is_null()) return "**not shown**";
  if (line.at("bar").is_null()) return "published";
  if (!line.at("holds").get<bool>()) return "**does not hold**";
  const auto& high = line.at("interval").at(1);
  const bool narrow = high.is_null() || high.get<double>() > line.at("bar").get<double>();
  return narrow ? "holds, narrowly" : "holds";
}

std::string measured(const Json& line) {
  if (line.at("measured").is_null()) return "–";
  return fmt::format("{}{} ({} – {})", number(line.at("measured")), unit_of(line),
                     number(line.at("interval").at(0)), number(line.at("interval").at(1)));
}

std::string bar(const Json& line) {
  const auto& bar = line.at("bar");
  return bar.is_null() ? "–" : "≤ " + number(bar) + unit_of(line);
}

std::string text(const Json& line, const char* key) { return line.at(key).get<std::string>(); }

// Lines of one machine: by group, claim and setting, in this order.
using Lines = std::map<std::vector<std::string>, Json>;

// Bars that were measured together share their note, which is given once.
std::string notes(const std::vector<Json>& lines) {
  std::vector<std::pair<std::string, std::string>> all;  // the note with its setting; the claims
  for (const auto& line : lines) {
    if (text(line, "note").empty()) continue;
    const auto note = fmt::format("{}: {}", text(line, "setting"), text(line, "note"));
    const auto same = [&](const auto& entry) { return entry.first == note; };
    const auto found = std::find_if(all.begin(), all.end(), same);
    if (found == all.end()) {
      all.emplace_back(note, text(line, "claim"));
    } else {
      found->second += ", " + text(line, "claim");
    }
  }
  std::string out = "\n";
  for (const auto& [note, claims] : all) out += fmt::format("- {}. {}.\n", claims, note);
  return out;
}

std::string table(const std::vector<Json>& lines) {
  std::string out =
      "\n| claim | setting | baseline | measured | bar | |\n|---|---|---|---|---|---|\n";
  for (const auto& line : lines) {
    out +=
        fmt::format("| {} | {} | {} | {} | {} | {} |\n", text(line, "claim"), text(line, "setting"),
                    text(line, "baseline"), measured(line), bar(line), verdict(line));
  }
  return out + notes(lines);
}

std::string section(const std::string& machine, const Lines& lines) {
  int64_t promises = 0;
  int64_t holding = 0;
  for (const auto& [key, line] : lines) {
    if (line.at("bar").is_null()) continue;
    ++promises;
    holding += line.at("holds").get<bool>() ? 1 : 0;
  }
  std::string out = fmt::format("\n## {}\n\n{} of {} hold.\n", machine, holding, promises);
  std::map<std::string, std::vector<Json>> groups;
  for (const auto& [key, line] : lines) groups[key.front()].push_back(line);
  for (const auto& [group, members] : groups) out += "\n### " + group + "\n" + table(members);
  return out;
}

std::string machine_name(const Json& run) {
  return fmt::format("{}, {} cores, LibTorch {}, {}", text(run, "cpu"), run.at("cores").get<int>(),
                     text(run, "libtorch"), text(run, "compiler"));
}

}  // namespace

std::string render(std::istream& results) {
  std::map<std::string, Lines> machines;
  std::string machine = "An unknown machine";
  int64_t row = 0;
  for (std::string row_text; std::getline(results, row_text);) {
    ++row;
    try {
      const auto json = Json::parse(row_text);
      if (json.contains("run")) {
        machine = machine_name(json.at("run"));
        continue;
      }
      machines[machine][{text(json, "group"), text(json, "claim"), text(json, "setting")}] = json;
    } catch (const Json::exception& error) {
      TORCH_CHECK_VALUE(false, "line ", row,
                        " of the results is not what a run writes: ", error.what());
    }
  }
  std::string out = kIntroduction;
  for (const auto& [name, lines] : machines) out += section(name, lines);
  if (machines.empty()) out += "\nNothing has been measured yet.\n";
  return out;
}

}  // namespace torchlore::claims
