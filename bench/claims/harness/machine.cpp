#include "machine.hpp"

#include <torch/version.h>

#include <chrono>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

namespace torchlore::claims {
namespace {

std::string cpu_model() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

std::string compiler() {
#ifdef __clang__
  return __VERSION__;
#else
  return "g++ " __VERSION__;
#endif
}

std::string today() {
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  char text[16] = {};
  std::tm utc{};
  gmtime_r(&now, &utc);
  std::strftime(text, sizeof text, "%Y-%m-%d", &utc);
  return text;
}

}  // namespace

std::string machine_line() {
  nlohmann::ordered_json run;
  run["cpu"] = cpu_model();
  run["cores"] = std::thread::hardware_concurrency();
  run["libtorch"] = TORCH_VERSION;
  run["compiler"] = compiler();
  run["date"] = today();
  return nlohmann::ordered_json{{"run", run}}.dump();
}

}  // namespace torchlore::claims
