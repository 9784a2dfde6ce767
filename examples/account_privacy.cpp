// How much noise a private run needs, and what it spends while it goes on.
#include <cstdio>
#include <torchlore/privacy/calibrate_noise.hpp>
#include <torchlore/privacy/prv.hpp>
#include <torchlore/privacy/rdp.hpp>

int main() {  // --quick or not: it runs in a second
  constexpr double kDelta = 1e-5;
  constexpr int64_t kEpochs = 20, kStepsPerEpoch = 234;
  const double q = 256.0 / 60'000;  // each example is in a batch with this probability

  const double sigma = torchlore::calibrate_noise(
      {.epsilon = 3, .delta = kDelta, .sample_rate = q, .steps = kEpochs * kStepsPerEpoch});
  std::printf("for ε = 3 after %d epochs the noise multiplier must be %.3f\n",
              static_cast<int>(kEpochs), sigma);

  torchlore::PrivacyLedger spent;
  for (int64_t epoch = 1; epoch <= kEpochs; ++epoch) {
    spent.add({.noise_multiplier = sigma, .sample_rate = q, .steps = kStepsPerEpoch});
    if (epoch % 5 != 0) continue;
    const auto tight = torchlore::prv_epsilon(spent, kDelta);
    std::printf("epoch %2d: ε between %.3f and %.3f; by RDP at most %.3f\n",
                static_cast<int>(epoch), tight.lower, tight.upper,
                torchlore::rdp_epsilon(spent, kDelta).value);
  }
}
