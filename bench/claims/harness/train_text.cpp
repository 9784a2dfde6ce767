#include "train_text.hpp"

#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "child.hpp"
#include "claim_paths.hpp"

namespace torchlore::claims {

namespace fs = std::filesystem;

nlohmann::json run_train_text(const Context& context, int seed,
                              const std::vector<std::string>& options) {
  const fs::path folder =
      fs::temp_directory_path() / fmt::format("torchlore_train_text_{}", getpid());
  const fs::path report = folder / "report.json";
  std::vector<std::string> command{TORCHLORE_TRAIN_TEXT,
                                   "--seed",
                                   std::to_string(seed),
                                   "--threads",
                                   std::to_string(context.threads()),
                                   "--run-dir",
                                   (folder / "run").string(),
                                   "--json",
                                   report.string(),
                                   "--minutes",
                                   "0"};
  command.insert(command.end(), options.begin(), options.end());
  if (context.quick()) command.emplace_back("--quick");
  fs::create_directories(folder);
  const ChildUse use = run_command(as_user(std::move(command)));
  TORCH_CHECK(use.exit_code == 0, "train_text ended with ", use.exit_code, "; its output is above");
  auto json = nlohmann::json::parse(std::ifstream(report));
  fs::remove_all(folder);
  return json;
}

}  // namespace torchlore::claims
