#pragma once

#include <cstdint>
#include <vector>

/// Audits: lower bounds on ε from what a mechanism really gave out. A bound above the ε that is claimed is
/// proof of a mistake (at the confidence asked for); one below is no proof of the contrary.
///
/// A score is any number that tends to be larger when a canary was in the data: the product of a noisy sum
/// with the canary's gradient, or minus its loss.
namespace torchlore {

/// Bounds of a probability p after `successes` of `trials`: it lies in between with the confidence asked for.
struct ProbabilityBounds {
  double lower = 0;  ///< no smaller p is likely
  double upper = 1;  ///< no larger p is likely
};

/// The exact interval of Clopper and Pearson (1934), two-sided.
/// @param successes 0 to trials. @param trials 1 or more. @param confidence in (0, 1).
/// @throws c10::ValueError for values out of range.
ProbabilityBounds clopper_pearson(int64_t successes, int64_t trials, double confidence = 0.95);

/// Options of the audits.
struct AuditOptions {
  double delta = 0;          ///< the δ that goes with ε; in [0, 1)
  double confidence = 0.95;  ///< with which the lower bounds hold; in (0, 1)
};

/// What an audit of one canary found.
struct CanaryAudit {
  /// A lower bound on ε, whatever the mechanism is. 0 if nothing is proved.
  double epsilon = 0;
  /// A lower bound on ε if the mechanism is Gaussian noise and nothing else: far tighter, and wrong
  /// where that is not known.
  double gaussian_epsilon = 0;
};

/// Audits with one canary, the same in many runs: with it, and without it.
///
/// The first quarter of each list chooses a threshold; the rest measures how often it errs
/// (Clopper-Pearson), so that the choice costs no confidence.
/// @param with    scores of runs with the canary, 4 or more, in no particular order.
/// @param without the same without it.
/// @throws c10::ValueError for too few scores, NaN, or options out of range.
/// Source: Jagielski, Ullman, Oprea (2020), arXiv:2006.07709; Nasr et al. (2023), arXiv:2302.07956, for
/// gaussian_epsilon.
CanaryAudit audit_canary(const std::vector<double>& with, const std::vector<double>& without,
                         AuditOptions options = {});

/// Audits one run with many canaries, each of which was in the data with probability 1/2, by itself.
///
/// The `guesses` / 2 highest scores are guessed to be in, as many lowest to be out; of the others nothing is
/// said.
/// @param scores   of each canary.
/// @param included whether it was in.
/// @param guesses  even, 2 to the number of canaries; to be fixed before the run.
/// @return a lower bound on ε; 0 if nothing is proved. With δ it is of use for canaries ≪ 1/δ.
/// @throws c10::ValueError for lists of unequal length, NaN, or values out of range.
/// Source: Steinke, Nasr, Jagielski (2023), arXiv:2305.08846, theorem 5.2.
double audit_one_run(const std::vector<double>& scores, const std::vector<bool>& included,
                     int64_t guesses, AuditOptions options = {});

/// How likely an (ε, δ)-private mechanism at most makes `correct` or more right guesses of `guesses`, about
/// some of `canaries`: the p-value of `audit_one_run`. @param epsilon 0 or more.
double one_run_p_value(int64_t canaries, int64_t guesses, int64_t correct, double epsilon,
                       double delta);

}  // namespace torchlore
