#include "peer.hpp"

#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>

#include "child.hpp"
#include "claim_paths.hpp"

namespace torchlore::claims {
namespace {

std::string python() {
  const char* named = std::getenv("TORCHLORE_PEERS_PYTHON");
  return named != nullptr ? named : TORCHLORE_PEERS_PYTHON;
}

}  // namespace

Peer::Peer(const Context& context, const std::string& script,
           const std::vector<std::string>& arguments) {
  if (!std::filesystem::exists(python())) return;
  std::vector<std::string> command{python(), TORCHLORE_PEERS_DIR "/" + script, "--threads",
                                   std::to_string(context.threads())};
  command.insert(command.end(), arguments.begin(), arguments.end());
  auto child = std::make_shared<Child>(command);
  const auto greeting = child->read_line();
  TORCH_CHECK(greeting && (greeting->starts_with("ready ") || *greeting == "missing"),
              "bench/peers/", script, " did not start; it said: ", greeting.value_or("nothing"));
  if (*greeting == "missing") return;
  version_ = greeting->substr(6);
  child_ = std::move(child);
}

Peer::~Peer() = default;

Contender Peer::contender(std::string name) {
  TORCH_CHECK(installed(), kPeerMissing);
  return {std::move(name), [child = child_](int64_t repeats) {
            child->write_line(fmt::format("run {}", repeats));
            const auto answer = child->read_line();
            TORCH_CHECK(answer, "the peer ended; its errors are above");
            return std::stod(*answer);
          }};
}

}  // namespace torchlore::claims
