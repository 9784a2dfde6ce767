#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "torchlore/core/state_dict.hpp"

namespace torchlore {

/// Options of `ResumableSampler`.
struct ResumableSamplerOptions {
  bool shuffle = true;     ///< a new random order every epoch; false: 0, 1, 2, …
  uint64_t seed = 0;       ///< the order of an epoch depends on (seed, epoch) and nothing else
  bool drop_last = false;  ///< leave out an epoch's last batch if it would be short
};

/// A sampler for `torch::data` that can be stopped anywhere and resumed without repeating or
/// skipping an example, also with a loader whose workers read ahead.
///
/// A loader moves its sampler inside and draws batches long before they are trained on. So this is
/// a handle: copies share one position, and the position that is saved counts what training has
/// consumed, not what the loader has drawn. Say so after each step:
/// ```cpp
/// torchlore::ResumableSampler sampler(dataset_size, {.seed = 1});
/// auto loader = torch::data::make_data_loader(dataset, sampler, loader_options);
/// run.add("sampler", sampler);
/// run.resume();
/// while (sampler.epoch() < epochs) {
///   for (auto& batch : *loader) {           // goes on at the saved position
///     train(batch);
///     sampler.consume(batch.data.size(0));  // before run.save()
///     run.save();
///   }
/// }
/// ```
/// The batch size may change from run to run. The loader must deliver in order (its default,
/// `enforce_ordering`). Set `drop_last` here, not on the loader: then `epoch()` counts right.
/// A loader that is begun again goes on where consumption stands, also in the middle of an epoch.
/// It needs no base class of LibTorch's, whose header would cost each file seconds to compile. Use
/// all copies from the loader's thread.
class ResumableSampler {
 public:
  using BatchRequestType = std::vector<size_t>;  ///< what a loader asks the dataset for

  /// @param size number of examples in the dataset.
  /// @throws c10::ValueError if size < 1.
  explicit ResumableSampler(int64_t size, ResumableSamplerOptions options = {});

  /// Begins a pass, as a loader's `begin()` does: at the saved position, or at the next epoch once
  /// all of this one is consumed. What the last pass drew but nobody consumed is drawn again. Only
  /// a short batch at an epoch's end is not: a loader with `drop_last` has withheld it.
  /// @throws c10::ValueError for another size than the sampler was made for, or if a whole pass was
  ///         drawn and `consume` never called.
  void reset(std::optional<size_t> new_size = std::nullopt);
  /// The next indices, at most `batch_size`; nothing at the end of an epoch.
  /// @throws c10::ValueError if batch_size is 0, or with drop_last above the dataset's size.
  /// @note O(size) once an epoch, else O(batch_size).
  std::optional<std::vector<size_t>> next(size_t batch_size);

  /// Marks the oldest `examples` that were drawn as trained on.
  /// @throws c10::ValueError if there are not so many, or examples < 0.
  void consume(int64_t examples);

  int64_t size() const;      ///< number of examples in the dataset
  int64_t epoch() const;     ///< epochs consumed; it turns with the last example of each
  int64_t consumed() const;  ///< examples consumed of the current epoch

  /// The position and what the order depends on: size, shuffle, seed, epoch, consumed.
  StateDict state_dict() const;
  /// Takes up a saved position, and its seed. Load before the loader is begun.
  /// @throws c10::ValueError if it is of a dataset of another size or of the other kind of order,
  ///         or out of range.
  void load_state_dict(const StateDict& state);

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace torchlore
