#pragma once

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>

#include "../claim.hpp"

/// The JSON that claims write: one object a line.
namespace torchlore::claims {

/// Four digits are what a measurement is worth; what was not measured becomes null.
inline double rounded(double value) {
  return std::isfinite(value) ? std::stod(fmt::format("{:.4g}", value)) : std::nan("");
}

/// @param setting the line's, completed by what the run adds to it.
inline std::string line_json(const Claim& claim, const Line& line, const std::string& setting) {
  nlohmann::ordered_json json;
  json["claim"] = line.part.empty() ? claim.name : claim.name + "/" + line.part;
  json["group"] = claim.group;
  json["setting"] = setting;
  json["baseline"] = line.baseline;
  json["measured"] = rounded(line.measured.value);
  json["unit"] = line.unit;
  json["interval"] = {rounded(line.measured.low), rounded(line.measured.high)};
  json["bar"] = line.bar;  // kNoBar becomes null
  json["holds"] = line.measured.value <= line.bar;
  json["note"] = line.note;
  return json.dump();
}

}  // namespace torchlore::claims
