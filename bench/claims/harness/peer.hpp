#pragma once

#include <memory>
#include <string>
#include <vector>

#include "../claim.hpp"
#include "timing.hpp"

namespace torchlore::claims {

class Child;

/// A Python library's side of a comparison: a script of bench/peers in a process of its own, which
/// is asked for one timing after another.
class Peer {
 public:
  /// Starts bench/peers/`script` with these arguments and the context's threads, and waits until it
  /// is ready. Where the peers' Python or the library is missing, the result is not `installed()`.
  Peer(const Context& context, const std::string& script,
       const std::vector<std::string>& arguments = {});
  ~Peer();

  bool installed() const { return child_ != nullptr; }
  /// What the peer calls itself, with its version.
  const std::string& version() const { return version_; }
  /// @throws c10::Error when used, if the peer ended.
  Contender contender(std::string name);

 private:
  std::shared_ptr<Child> child_;
  std::string version_;
};

/// The note of a line whose peer is missing.
inline const char* const kPeerMissing = "peer not installed";

}  // namespace torchlore::claims
