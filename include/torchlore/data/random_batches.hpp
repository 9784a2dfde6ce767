#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "torchlore/core/batch.hpp"
#include "torchlore/core/select_examples.hpp"
#include "torchlore/core/state_dict.hpp"

/// What the samplers of private training share: each step draws its examples anew.
namespace torchlore {

/// The indices of one step's examples, ascending; possibly none.
class IndexBatch {
 public:
  /// Of these examples.
  explicit IndexBatch(std::vector<size_t> indices) : indices_(std::move(indices)) {}
  /// The indices themselves.
  const std::vector<size_t>& indices() const { return indices_; }
  /// As a [n] int64 tensor.
  at::Tensor tensor() const;
  /// What a loader of `torch::data` is told, which takes 0 for a mistake: 1 for an empty batch.
  size_t size() const { return indices_.empty() ? 1 : indices_.size(); }
  /// What a dataset's `get_batch` takes: all of them, or none.
  operator c10::ArrayRef<size_t>() const { return indices_; }

 private:
  std::vector<size_t> indices_;
};

/// Batches that are drawn anew for each step, independently of all others: the base of `PoissonSampler` and
/// `FixedSizeSampler`, which say how.
///
/// ```cpp
/// torchlore::PoissonSampler sampler(60'000, {.expected_batch = 256});
/// for (auto& batch : sampler.batches(train)) step(batch, loss_of);  // an epoch; train: data and target
/// ```
/// or, with a loader of `torch::data`, whose own batch size says nothing and which must not have
/// `drop_last` set:
/// ```cpp
/// auto loader = torch::data::make_data_loader(dataset, sampler, torch::data::DataLoaderOptions(1));
/// for (auto& batch : *loader) {
///   step(batch, loss_of);
///   sampler.consume();
/// }
/// ```
/// The dataset must know an empty list of indices (`transforms::Stack` does not).
///
/// It is a handle: copies share one position. What is saved is how many steps were consumed.
class RandomBatches {
 public:
  using BatchRequestType = IndexBatch;  ///< what a loader asks the dataset for

  /// Begins a pass, or goes on with one that was left.
  /// @throws c10::ValueError for another size than the sampler was made for.
  void reset(std::optional<size_t> new_size = std::nullopt);
  /// The next step's examples; nothing at the end of a pass. @param batch_size a loader's; not used.
  /// @note O(size of the data set) for Poisson sampling, O(batch) for batches of fixed size.
  std::optional<IndexBatch> next(size_t batch_size = 1);
  /// Marks steps as trained on. @throws c10::ValueError if there were not so many.
  void consume(int64_t steps = 1);

  int64_t size() const;            ///< examples of the data set
  double expected_batch() const;   ///< examples a step, on average
  double sample_rate() const;      ///< the same over the size of the data set
  int64_t steps_per_pass() const;  ///< batches a pass gives
  int64_t consumed() const;        ///< steps trained on since the beginning

  /// The position, and what the batches depend on.
  StateDict state_dict() const;
  /// Goes on at a saved position. Of a secure sampler nothing else is known: what it drew is not drawn
  /// again. @throws c10::ValueError if it was saved with another size, batch, kind or seed.
  void load_state_dict(const StateDict& state);

  template <typename B>
  class Iterator;
  template <typename B>
  class Pass;

  /// The batches of a pass, selected from the whole data set in memory: a tensor, or anything of tensors
  /// with `data` and `target`, a pair, tuple or vector of these.
  /// @throws c10::ValueError unless `data` holds as many examples as the sampler is for.
  template <SelectableBatch B>
  Pass<B> batches(B data) {
    check_size(batch_size(data));
    return Pass<B>(*this, std::move(data));
  }

 protected:
  struct State;
  /// By the samplers.
  explicit RandomBatches(std::shared_ptr<State> state) : state_(std::move(state)) {}

 private:
  void check_size(int64_t size) const;

  std::shared_ptr<State> state_;
};

/// An input iterator over the rest of a pass: each batch counts as consumed when it is drawn.
template <typename B>
class RandomBatches::Iterator {
 public:
  using value_type = B;                               ///< a batch
  using difference_type = std::ptrdiff_t;             ///< not used
  using iterator_category = std::input_iterator_tag;  ///< one way, once

  /// The end.
  Iterator() = default;
  /// The first batch that is left.
  Iterator(RandomBatches& sampler, const B& data) : sampler_(&sampler), data_(&data) { ++*this; }
  /// The batch.
  B& operator*() { return *batch_; }
  /// Draws the next one.
  Iterator& operator++() {
    const auto indices = sampler_->next();
    if (!indices) {
      batch_.reset();
      return *this;
    }
    sampler_->consume();
    batch_.emplace(select_examples(*data_, indices->tensor()));
    return *this;
  }
  /// Whether both are at the end, or neither is.
  bool operator==(const Iterator& other) const {
    return batch_.has_value() == other.batch_.has_value();
  }

 private:
  RandomBatches* sampler_ = nullptr;
  const B* data_ = nullptr;
  std::optional<B> batch_ = std::nullopt;
};

/// The range of one pass over `data`.
template <typename B>
class RandomBatches::Pass {
 public:
  /// By `RandomBatches::batches`.
  Pass(RandomBatches sampler, B data) : sampler_(std::move(sampler)), data_(std::move(data)) {}
  /// Begins the pass.
  Iterator<B> begin() {
    sampler_.reset();
    return {sampler_, data_};
  }
  /// Its end.
  Iterator<B> end() { return {}; }

 private:
  RandomBatches sampler_;
  B data_;
};

}  // namespace torchlore
