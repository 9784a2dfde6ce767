#pragma once

#include <cstdint>
#include <memory>

#include "torchlore/core/state_dict.hpp"

namespace torch::nn {
class Module;
}

namespace torchlore {

/// What becomes of a model's buffers (batch norm's running statistics) in an average.
enum class AverageBuffers : uint8_t {
  copy,     ///< the average has those of the last averaged step
  average,  ///< averaged as parameters are; integers (counters) are copied
  leave,    ///< the model keeps its own, also while averages are swapped in
};

/// How the decay of an exponential moving average begins; n is the number of averages made before.
enum class EmaWarmup : uint8_t {
  ratio,  ///< min(decay, (1 + n) / (10 + n))
  power,  ///< min(decay, 1 - (1 + n / inv_gamma)^-power)
  none,   ///< the decay from the second average on, as in PyTorch
};

/// Options of an exponential moving average.
struct EmaOptions {
  double decay = 0.999;                           ///< the average's own weight; in [0, 1]
  EmaWarmup warmup = EmaWarmup::ratio;            ///< see EmaWarmup
  double inv_gamma = 1.0;                         ///< of EmaWarmup::power; above 0
  double power = 2.0 / 3.0;                       ///< of EmaWarmup::power; above 0
  int64_t start = 0;                              ///< steps before the first average; 0 or more
  int64_t period = 1;                             ///< averages every so many steps; 1 or more
  AverageBuffers buffers = AverageBuffers::copy;  ///< see AverageBuffers
};

/// Options of an equal average (stochastic weight averaging).
struct SwaOptions {
  int64_t start = 0;   ///< steps before the first average: mostly 75 % of the run; 0 or more
  int64_t period = 1;  ///< averages every so many steps: mostly an epoch; 1 or more
  AverageBuffers buffers = AverageBuffers::copy;  ///< see AverageBuffers
};

/// A running average of a model's weights, which generalises better than the last ones and is put
/// in their place for evaluation.
///
/// ```cpp
/// auto ema = torchlore::WeightAverage::ema(*model, {.decay = 0.9999});
/// for (auto& batch : *loader) {
///   …
///   optimizer.step();
///   ema.update();
/// }
/// {
///   const auto averaged = ema.swap();  // the model has the averages now …
///   validate(*model);
/// }                                    // … and its own weights again
/// ```
/// The first average is a copy. Averages of float16 and bfloat16 parameters are kept in float32:
/// in 16 bits an increment of 0.001 is mostly rounded away. A handle: copies share one average.
/// Parameters are reached through their tensors, whose addresses never change, so optimizer state
/// stays theirs; make the average after the model was moved to its device and dtype.
/// @note Memory: one more copy of the weights. `update` reads weights and averages once and writes
///       averages once; no host syncs.
/// Source: Polyak, Juditsky (1992), doi:10.1137/0330046; Izmailov et al. (2018), arXiv:1803.05407
/// (SWA); Abadi et al. (2016), arXiv:1603.04467 (ratio warm-up of EMA).
class WeightAverage {
 public:
  /// avg = decay · avg + (1 - decay) · weights, of all parameters (tied ones once).
  /// @throws c10::ValueError for an option outside its range, or a model without parameters.
  static WeightAverage ema(const torch::nn::Module& model, EmaOptions options = {});
  /// The mean of the weights; throws as above.
  static WeightAverage swa(const torch::nn::Module& model, SwaOptions options = {});

  /// Call after every step of the optimizer; averages if the step is one that counts.
  /// @return whether it averaged.
  /// @throws c10::Error while averages are swapped in; c10::ValueError naming a tensor whose
  ///         shape or device is no longer that of its average; nothing has changed then.
  bool update();

  /// Averages in the model's place while it lives.
  class [[nodiscard]] Scope {
   public:
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
    /// Gives the model its weights back. What the model's buffers became meanwhile (recalibrated
    /// batch norm) is kept with the average until the next `update`.
    ~Scope();

   private:
    friend class WeightAverage;
    struct Aside;
    explicit Scope(const WeightAverage& average);
    std::unique_ptr<Aside> aside_;
  };
  /// Puts the averages into the model.
  /// @throws c10::Error if they are there already; as `update` for parameters. Nothing has changed
  ///         then, also where memory ran out.
  /// @note On the host the bytes of equal dtypes are exchanged, without any new memory; otherwise the
  ///       weights are kept aside, which takes a copy of them.
  Scope swap() const;
  /// Whether averages are in the model's place.
  bool swapped() const;
  /// Writes the averages into the model for good; throws as `swap`.
  void copy_to_model() const;

  /// The averages by the names of `module_state_dict` (without buffers where they are left alone);
  /// float32 for 16-bit parameters. They share memory with this. @throws c10::Error as `update`.
  StateDict averages() const;
  /// Steps counted by `update`.
  int64_t steps() const;
  /// Averages made.
  int64_t updates() const;

  /// Counts and averages. @throws c10::Error while averages are swapped in.
  StateDict state_dict() const;
  /// Takes the saved state over. @throws c10::ValueError naming the differences (the first ten, and
  ///         how many there are), and as `state_dict`; nothing has changed then.
  void load_state_dict(const StateDict& state);
  /// Throws what `load_state_dict` would; changes nothing.
  void check_state_dict(const StateDict& state) const;

 private:
  struct State;
  explicit WeightAverage(std::shared_ptr<State> state);
  std::shared_ptr<State> state_;
};

}  // namespace torchlore
