#include "quantile_clipping.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include "torchlore/core/error.hpp"

namespace torchlore::privacy {

void check_quantile(const QuantileClipping& adaptive, double norm, double noise_multiplier,
                    const QuantileNames& names) {
  const auto of = [&](const char* option) { return std::string(option) + " of " + names.options; };
  check_in_range(of("quantile").c_str(), adaptive.quantile, 0, 1);
  check_positive(of("rate").c_str(), adaptive.rate);
  check_not_negative(of("count_noise").c_str(), adaptive.count_noise);
  TORCH_CHECK_VALUE(0 < adaptive.least && adaptive.least <= norm && norm <= adaptive.most &&
                        std::isfinite(adaptive.most),
                    names.options, " needs 0 < least <= ", names.norm, " <= most, but they are ",
                    adaptive.least, ", ", norm, " and ", adaptive.most);
  TORCH_CHECK_VALUE(noise_multiplier < 2 * adaptive.count_noise, of("count_noise"), " is ",
                    adaptive.count_noise, ", which alone spends all that a noise multiplier of ",
                    noise_multiplier, " allows; it must be above half of it");
}

double raised_noise(const QuantileClipping& adaptive, double noise_multiplier) {
  const double share = noise_multiplier / (2 * adaptive.count_noise);
  return noise_multiplier / std::sqrt((1 - share) * (1 + share));
}

double next_norm(const QuantileClipping& adaptive, double norm, double centred, double expected) {
  const double share = centred / expected + 0.5;
  const double change = -adaptive.rate * (share - adaptive.quantile);
  return std::clamp(adaptive.geometric ? norm * std::exp(change) : norm + change, adaptive.least,
                    adaptive.most);
}

}  // namespace torchlore::privacy
