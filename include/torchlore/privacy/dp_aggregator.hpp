#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "torchlore/core/state_dict.hpp"
#include "torchlore/privacy/noise_source.hpp"
#include "torchlore/privacy/privacy_ledger.hpp"
#include "torchlore/privacy/quantile_clipping.hpp"

namespace torchlore {

/// A clipping bound that follows a quantile of the updates' norms; the expected number is
/// `expected_clients`.
using AdaptiveBound = QuantileClipping;

/// Options of `DpAggregator`.
struct DpAggregatorOptions {
  /// The L2 norm that each update is clipped to: a number that was chosen without the updates, for
  /// one that was observed tells about them. Finite, above 0.
  double clip_norm = 0;
  /// Standard deviation of the noise on the sum, over the norm. To be set; 0 clips only, and
  /// protects nothing.
  double noise_multiplier = -1;
  /// What the sum is divided by: how many clients a round has on average, a public number. The number
  /// that really answered is private, and dividing by it would need other accounting. Above 0.
  double expected_clients = 0;
  /// The probability with which each client is in a round, each by itself; in (0, 1].
  double client_rate = 1;
  /// Lets clip_norm follow a quantile.
  std::optional<AdaptiveBound> adaptive = std::nullopt;
  /// Where the noise comes from.
  NoiseSource noise = {};
};

/// What became of an update.
enum class UpdateVerdict : uint8_t {
  accepted,       ///< it is in the sum
  late,           ///< its round is over, or none has begun
  not_selected,   ///< its client is not one of this round's
  duplicate,      ///< its client has one in the sum already
  unreadable,     ///< the file is damaged or not there
  wrong_tensors,  ///< names, shapes or dtypes are not the model's
  not_finite,     ///< it holds NaN or infinity, or numbers too large for its norm
};

/// The verdict's name, as written in code.
const char* to_string(UpdateVerdict verdict);

/// An update that was not counted.
struct RejectedUpdate {
  std::string client = {};                            ///< whose
  UpdateVerdict verdict = UpdateVerdict::unreadable;  ///< why
  std::string reason = {};                            ///< in words
};

/// What a round gives. Only `mean`, `round` and `clip_norm` are private and may be published; the rest
/// tells about single clients and is for whoever runs the server.
struct AggregatedRound {
  StateDict mean = {};   ///< noisy sum / expected_clients, as the model's tensors
  int64_t round = 0;     ///< from 1
  double clip_norm = 0;  ///< the bound that was used
  int64_t accepted = 0;  ///< updates in the sum
  std::vector<RejectedUpdate> rejected = {};  ///< in the order they came
  std::vector<std::string> missing = {};  ///< selected clients without an accepted update, sorted
};

/// The mean of many clients' updates, which hardly depends on any single client: clip each to a public
/// bound, sum, add noise once, divide by a public number. The server sees the updates: this protects
/// from whoever sees the means.
///
/// ```cpp
/// torchlore::DpAggregator aggregator(model_state, {
///     .clip_norm = 0.5, .noise_multiplier = 1.0, .expected_clients = 100, .client_rate = 0.1});
/// aggregator.start_round();
/// for (const auto& client : clients) aggregator.add(client.name, client.update());
/// auto round = aggregator.finish_round();          // round.mean
/// ```
/// The sum is kept as whole numbers on the noise's grid, where addition is exact: no order of the
/// clients and no rounding adds to the sensitivity. Memory: one model of int64, whatever the number of
/// clients, and one update. A bad update is rejected by itself and reported; the others count.
class DpAggregator {
 public:
  /// @param like names, shapes and floating dtypes of the model's tensors; at least one element.
  /// @throws c10::ValueError for an option out of range; c10::TypeError for a tensor that is not floating.
  DpAggregator(const StateDict& like, DpAggregatorOptions options);

  /// Begins a round. @param selected the clients who may answer; empty: anybody, once each.
  /// @throws c10::Error if a round is open.
  void start_round(const std::vector<std::string>& selected = {});

  /// Takes an update into the sum, or says why not. Its tensors are not kept.
  /// @param round the round it was made for; 0: the one that is open.
  /// @throws c10::ValueError if so many updates are in the sum that it could overflow.
  UpdateVerdict add(const std::string& client, const StateDict& update, int64_t round = 0);
  /// The same from a safetensors file.
  UpdateVerdict add_file(const std::string& client, const std::filesystem::path& path,
                         int64_t round = 0);

  /// Adds the noise, divides, and ends the round. A round without any update is noise alone, and is
  /// accounted for like the others.
  /// @throws c10::Error if no round is open.
  AggregatedRound finish_round();

  /// The bound of the open round, or of the next.
  double clip_norm() const { return clip_norm_; }
  /// Rounds that are finished.
  int64_t rounds() const { return rounds_; }
  /// All finished rounds. @throws c10::ValueError if they had no noise: there is no ε then.
  PrivacyLedger ledger() const;

  /// Rounds, bound and noise source. @throws c10::Error if a round is open.
  StateDict state_dict() const;
  /// Goes on where `state_dict` was taken. @throws c10::ValueError if the state is damaged;
  /// c10::Error if a round is open.
  void load_state_dict(const StateDict& state);

 private:
  UpdateVerdict reject(const std::string& client, UpdateVerdict verdict, std::string reason);
  void check_closed(const char* what) const;

  StateDict like_;
  DpAggregatorOptions options_;
  double update_noise_ = 0;  // noise multiplier of the updates' sum
  double clip_norm_ = 0;
  int64_t elements_ = 0;
  int64_t rounds_ = 0;

  bool open_ = false;
  std::set<std::string> selected_;
  std::set<std::string> counted_;
  int64_t unclipped_ = 0;
  AggregatedRound result_;
  StateDict sum_;
};

}  // namespace torchlore
