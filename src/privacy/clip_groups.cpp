#include "clip_groups.hpp"

#include <c10/util/Exception.h>

#include <cmath>

namespace torchlore::detail {
namespace {

/// "encoder.0.weight" → "encoder.0".
std::string module_of(const std::string& parameter) {
  const auto dot = parameter.rfind('.');
  return dot == std::string::npos ? std::string() : parameter.substr(0, dot);
}

bool goes_by(const std::string& parameter, const std::string& name) {
  return parameter == name || parameter.starts_with(name + ".");
}

}  // namespace

ClipGroups::ClipGroups(const Tape::NamedParameters& parameters, const ExampleClipping& clipping) {
  switch (clipping.kind()) {
    case ExampleClipping::Kind::per_layer:
      group_by_layer(parameters, clipping.max_norm());
      break;
    case ExampleClipping::Kind::per_group:
      group_by_names(parameters, clipping.groups());
      break;
    default:
      for (const auto& [name, parameter] : parameters) group_[name] = 0;
      max_norms = {clipping.max_norm()};
  }
}

void ClipGroups::group_by_layer(const Tape::NamedParameters& parameters, double max_norm) {
  std::map<std::string, size_t> layers;
  for (const auto& [name, parameter] : parameters) {
    group_[name] = layers.emplace(module_of(name), layers.size()).first->second;
  }
  max_norms.assign(layers.size(), max_norm / std::sqrt(static_cast<double>(layers.size())));
}

void ClipGroups::group_by_names(const Tape::NamedParameters& parameters,
                                const std::vector<ClipGroup>& groups) {
  for (size_t i = 0; i < groups.size(); ++i) {
    max_norms.push_back(groups[i].max_norm);
    for (const auto& wanted : groups[i].names) {
      bool is_there = false;
      for (const auto& [name, parameter] : parameters) {
        if (!goes_by(name, wanted)) continue;
        is_there = true;
        TORCH_CHECK_VALUE(group_.emplace(name, i).second, "parameter '", name,
                          "' is in two groups; each must be in one");
      }
      TORCH_CHECK_VALUE(is_there, "no trainable parameter goes by the name '", wanted, "'");
    }
  }
  for (const auto& [name, parameter] : parameters) {
    TORCH_CHECK_VALUE(group_.contains(name), "parameter '", name,
                      "' is in no group; every trainable parameter must be in one, or be frozen");
  }
}

}  // namespace torchlore::detail
