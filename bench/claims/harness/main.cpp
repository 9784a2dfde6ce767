#include <ATen/Parallel.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string_view>
#include <thread>

#include "json.hpp"
#include "machine.hpp"
#include "options.hpp"
#include "registry.hpp"
#include "render.hpp"

namespace torchlore::claims {
namespace {

// OpenMP and malloc read their settings before main: start anew where they are not as they must be.
// Children inherit them, so they hold for both sides.
void settle_environment(int64_t threads, char** arguments) {
  const std::string count = std::to_string(threads);
  const std::pair<const char*, const char*> settings[] = {
      {"OMP_NUM_THREADS", count.c_str()},
      // A thread that spins takes the core from the other side of the comparison.
      {"OMP_WAIT_POLICY", "passive"},
      // Freed memory stays with the process. Otherwise code that makes temporary tensors
      // (LibTorch's optimizers) also pays for page faults, several times its own work on some
      // machines.
      {"MALLOC_TRIM_THRESHOLD_", "1000000000"},
      {"MALLOC_MMAP_THRESHOLD_", "1000000000"},
  };
  bool settled = true;
  for (const auto& [name, value] : settings) {
    const char* now = std::getenv(name);
    settled = settled && now != nullptr && std::string_view(now) == value;
    setenv(name, value, 1);
  }
  if (settled) return;
  execv("/proc/self/exe", arguments);
  TORCH_CHECK(false, "cannot start anew with OMP_WAIT_POLICY=passive");
}

class Run final : public Context {
 public:
  Run(const Options& options, int64_t threads) : quick_(options.quick), threads_(threads) {
    if (options.json.empty()) return;
    file_.open(options.json, std::ios::app);
    TORCH_CHECK(file_, "cannot write to ", options.json);
    file_ << machine_line() << '\n' << std::flush;
  }

  void measure(const Claim& claim) {
    claim_ = claim;
    say(claim.promise);
    claim.measure(*this);
  }

  bool quick() const override { return quick_; }
  int64_t threads() const override { return threads_; }

  void report(const Line& line) override {
    const std::string text = line_json(claim_, line, setting(line));
    fmt::print("{}\n", text);
    std::fflush(stdout);
    if (file_.is_open()) file_ << text << '\n' << std::flush;
  }

  void say(const std::string& text) const override {
    fmt::print(stderr, "{}: {}\n", claim_.name, text);
  }

 private:
  std::string setting(const Line& line) const {
    std::string text = line.setting;
    if (claim_.threads_matter)
      text += fmt::format(", {} thread{}", threads_, threads_ == 1 ? "" : "s");
    return quick_ ? text + " (quick: says nothing)" : text;
  }

  bool quick_;
  int64_t threads_;
  std::ofstream file_;
  Claim claim_;
};

void print_list() {
  for (const auto& claim : all_claims()) {
    fmt::print("{:<11} {:<24} {}{}\n", claim.group, claim.name, claim.promise,
               claim.only_by_name ? " (only by --run)" : "");
  }
}

int run(char** arguments) {
  std::vector<std::string> words;
  for (char** word = arguments + 1; *word != nullptr; ++word) words.emplace_back(*word);
  const Options options = parse_options(words);
  const auto claims = chosen_claims(options, all_claims());
  if (options.list) {
    print_list();
    return 0;
  }
  if (!options.render.empty()) {
    std::ifstream results(options.render);
    TORCH_CHECK(results, "cannot read ", options.render);
    fmt::print("{}", render(results));
    return 0;
  }
  if (claims.empty()) {
    fmt::print("{}", kUsage);
    return words.empty() ? 0 : 2;
  }
  const int64_t threads = options.threads > 0
                              ? options.threads
                              : std::max<int64_t>(1, std::thread::hardware_concurrency());
  settle_environment(threads, arguments);
  at::set_num_threads(static_cast<int>(threads));
  std::signal(SIGPIPE, SIG_IGN);
  Run run(options, threads);
  for (const auto& claim : claims) run.measure(claim);
  return 0;
}

}  // namespace
}  // namespace torchlore::claims

int main(int, char** arguments) {
  try {
    return torchlore::claims::run(arguments);
  } catch (const c10::Error& error) {
    fmt::print(stderr, "torchlore_claims: {}\n", error.what_without_backtrace());
  } catch (const std::exception& error) {
    fmt::print(stderr, "torchlore_claims: {}\n", error.what());
  }
  return 1;
}
