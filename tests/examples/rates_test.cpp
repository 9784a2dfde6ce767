// Both sides of train_text train at the same rates.
#include <gtest/gtest.h>

#include "../../examples/train_text/plain_side.hpp"
#include "../../examples/train_text/torchlore_side.hpp"

namespace text {
namespace {

TEST(Rates, AreTheSameOnBothSides) {
  const Corpus corpus;
  for (const int64_t steps : {1, 2, 8, 39, 40, 57, 400}) {
    Settings settings;
    settings.steps = steps;
    const text::Run run(settings, corpus);
    const auto ours = schedule(run);
    for (int64_t t = 0; t < steps + steps / 4; ++t) {
      EXPECT_NEAR(settings.learning_rate * ours(t), run.learning_rate(t), 1e-17)
          << "step " << t << " of " << steps;
    }
  }
}

}  // namespace
}  // namespace text
