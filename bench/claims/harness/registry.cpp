#include "registry.hpp"

#include <algorithm>
#include <tuple>

namespace torchlore::claims {
namespace {

std::vector<Claim>& registered() {
  static std::vector<Claim> claims;  // made by the first registration, whatever file it is in
  return claims;
}

}  // namespace

bool add_claim(Claim claim) {
  registered().push_back(std::move(claim));
  return true;
}

const std::vector<Claim>& all_claims() {
  std::sort(registered().begin(), registered().end(), [](const Claim& a, const Claim& b) {
    return std::tie(a.group, a.name) < std::tie(b.group, b.name);
  });
  return registered();
}

}  // namespace torchlore::claims
