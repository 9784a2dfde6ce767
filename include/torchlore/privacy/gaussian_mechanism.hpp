#pragma once

/// One release with Gaussian noise, and the limit of many.
namespace torchlore {

/// The smallest δ of one Gaussian mechanism for an ε: exact.
/// @param noise_multiplier standard deviation / L2 sensitivity, above 0. @param epsilon 0 or more.
/// @throws c10::ValueError for a value out of range.
/// Source: Balle, Wang (2018), arXiv:1805.06530, theorem 8.
double gaussian_delta(double noise_multiplier, double epsilon);

/// The smallest ε of one Gaussian mechanism for a δ in (0, 1); rounded up in the last digits. Throws as
/// above.
double gaussian_epsilon(double noise_multiplier, double delta);

/// The least noise multiplier with which one Gaussian mechanism is (ε, δ)-private; rounded up in the
/// last digits. The classical sqrt(2 ln(1.25 / δ)) / ε is larger, and wrong for ε above 1.
/// @param epsilon above 0. @param delta in (0, 1).
double gaussian_noise_multiplier(double epsilon, double delta);

/// ε of many small steps by the central limit theorem of Gaussian differential privacy. An
/// **approximation**, which can be below the truth: for plots, never for a promise.
/// @param sample_rate in (0, 1]. @param steps 1 or more. @param delta in (0, 1).
/// Source: Bu, Dong, Long, Su (2020), arXiv:1911.11607: mu = q sqrt(steps (e^(1 / sigma^2) - 1)).
double gdp_epsilon(double noise_multiplier, double sample_rate, double steps, double delta);

}  // namespace torchlore
