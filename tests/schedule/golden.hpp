#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "test_paths.hpp"

/// The rates that PyTorch's schedulers gave: tests/oracles/schedules.py.
namespace torchlore::testing {

struct GoldenStep {
  int64_t step = 0;
  std::vector<double> values;  ///< the rates of both groups, then perhaps the momentum
};

inline std::map<std::string, std::vector<GoldenStep>> golden_schedules() {
  std::ifstream file(std::string(TORCHLORE_TEST_DATA) + "/schedules.txt");
  EXPECT_TRUE(file.good());
  std::map<std::string, std::vector<GoldenStep>> cases;
  std::string name;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    if (line.rfind("case ", 0) == 0) {
      name = line.substr(5);
      continue;
    }
    GoldenStep golden;
    words >> golden.step;
    for (double value = 0; words >> value;) golden.values.push_back(value);
    cases[name].push_back(golden);
  }
  return cases;
}

/// PyTorch computes a rate from the one before, over up to 1,000 steps; near zero its error is one of
/// the rates it came from.
inline ::testing::AssertionResult near_golden(double actual, double golden, double base) {
  constexpr double kRelative = 5e-14, kOfBase = 1e-15;
  const double error = std::abs(actual - golden);
  if (error <= kRelative * std::abs(golden) + kOfBase * base) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure()
         << actual << " instead of " << golden << ", off by " << error;
}

}  // namespace torchlore::testing
