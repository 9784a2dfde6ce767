#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "test_paths.hpp"

/// Rows of numbers that a script in tests/oracles wrote.
namespace torchlore::testing {

inline std::vector<std::vector<double>> golden_rows(const std::string& file_name) {
  std::ifstream file(std::filesystem::path(TORCHLORE_TEST_DATA) / file_name);
  EXPECT_TRUE(file.good()) << file_name;
  std::vector<std::vector<double>> rows;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    auto& row = rows.emplace_back();
    for (double value = 0; words >> value;) row.push_back(value);
  }
  return rows;
}

}  // namespace torchlore::testing
