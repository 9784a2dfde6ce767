#pragma once

#include <vector>

#include "torchlore/memory/retry.hpp"

namespace torchlore::testing {

/// Time that passes only where somebody waits, and chance that is always the same.
struct FakeClock {
  Seconds now{0};
  std::vector<double> waits = {};
  double chance = 0.5;

  RetryClock clock() {
    return {.now = [this] { return now; },
            .sleep =
                [this](Seconds time) {
                  waits.push_back(time.count());
                  now += time;
                },
            .random = [this] { return chance; }};
  }
};

}  // namespace torchlore::testing
