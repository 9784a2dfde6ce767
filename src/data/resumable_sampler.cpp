#include "torchlore/data/resumable_sampler.hpp"

#include <algorithm>
#include <limits>

#include "torchlore/core/error.hpp"
#include "torchlore/core/philox.hpp"

namespace torchlore {

/// Of the epoch's order, [0, consumed) is trained on and [consumed, drawn) is on its way there.
struct ResumableSampler::State {
  int64_t size = 0;
  ResumableSamplerOptions options = {};
  int64_t epoch = 0;
  int64_t consumed = 0;
  int64_t drawn = 0;
  int64_t batch_size = 0;     // of the last draw
  bool pass_is_over = false;  // its epoch is consumed; the next one waits for reset()
  bool ever_consumed = false;
  std::vector<int64_t> order = {};  // of `order_epoch`
  int64_t order_epoch = -1;

  bool drew_all() const { return size - drawn < (options.drop_last ? batch_size : 1); }

  void start_epoch(int64_t number) {
    epoch = number;
    consumed = 0;
    drawn = 0;
  }

  size_t example(int64_t place) {
    if (!options.shuffle) return static_cast<size_t>(place);
    if (order_epoch != epoch) {
      order = philox_permutation(options.seed, epoch, size);
      order_epoch = epoch;
    }
    return static_cast<size_t>(order[static_cast<size_t>(place)]);
  }
};

ResumableSampler::ResumableSampler(int64_t size, ResumableSamplerOptions options)
    : state_(std::make_shared<State>()) {
  check_count("the size of the dataset", size);
  state_->size = size;
  state_->options = options;
}

void ResumableSampler::reset(std::optional<size_t> new_size) {
  auto& s = *state_;
  TORCH_CHECK_VALUE(!new_size || *new_size == static_cast<size_t>(s.size), "the sampler is for ",
                    s.size, " examples and cannot change to ", new_size.value_or(0),
                    "; make a new one");
  const bool ended = s.batch_size > 0 && s.drew_all() && !s.pass_is_over;
  TORCH_CHECK_VALUE(!ended || s.ever_consumed, "the last pass drew all ", s.size,
                    " examples, but none was consumed, so the next one would repeat them; call "
                    "sampler.consume(n) after each training step");
  if (ended && s.size - s.consumed < s.batch_size) s.start_epoch(s.epoch + 1);
  s.drawn = s.consumed;
  s.pass_is_over = false;
}

std::optional<std::vector<size_t>> ResumableSampler::next(size_t batch_size) {
  auto& s = *state_;
  TORCH_CHECK_VALUE(batch_size > 0, "batch_size must be 1 or more, but is 0");
  if (s.pass_is_over) return std::nullopt;
  // Nobody draws more than there is, so that any size_t may be asked for.
  s.batch_size = static_cast<int64_t>(
      std::min(batch_size, static_cast<size_t>(std::numeric_limits<int64_t>::max())));
  if (s.options.drop_last && s.drawn == s.consumed && s.drew_all()) {
    TORCH_CHECK_VALUE(s.batch_size <= s.size, "batch_size is ", s.batch_size,
                      ", but there are only ", s.size, " examples, so drop_last would leave none");
    s.start_epoch(s.epoch + 1);  // resumed with larger batches, of which the epoch holds no more
  }
  if (s.drew_all()) return std::nullopt;
  const auto count = std::min(s.batch_size, s.size - s.drawn);
  std::vector<size_t> batch(static_cast<size_t>(count));
  for (auto& index : batch) index = s.example(s.drawn++);
  return batch;
}

void ResumableSampler::consume(int64_t examples) {
  auto& s = *state_;
  check_not_negative("examples", static_cast<double>(examples));
  TORCH_CHECK_VALUE(examples <= s.drawn - s.consumed, "cannot consume ", examples,
                    " examples: only ", s.drawn - s.consumed, " are drawn and not yet consumed");
  s.consumed += examples;
  s.ever_consumed = true;
  if (s.size - s.consumed < (s.options.drop_last ? s.batch_size : 1)) {
    s.start_epoch(s.epoch + 1);
    s.pass_is_over = true;
  }
}

int64_t ResumableSampler::size() const { return state_->size; }
int64_t ResumableSampler::epoch() const { return state_->epoch; }
int64_t ResumableSampler::consumed() const { return state_->consumed; }

StateDict ResumableSampler::state_dict() const {
  const auto& s = *state_;
  return {{"size", state_value(s.size)},
          {"shuffle", state_value(int64_t{s.options.shuffle})},
          {"seed", state_value(static_cast<int64_t>(s.options.seed))},
          {"epoch", state_value(s.epoch)},
          {"consumed", state_value(s.consumed)}};
}

void ResumableSampler::load_state_dict(const StateDict& state) {
  auto& s = *state_;
  const auto size = state_int(state, "size");
  const auto shuffle = state_int(state, "shuffle") != 0;
  const auto epoch = state_int(state, "epoch");
  const auto consumed = state_int(state, "consumed");
  const auto seed = static_cast<uint64_t>(state_int(state, "seed"));
  TORCH_CHECK_VALUE(size == s.size, "the saved position is in a dataset of ", size,
                    " examples, but this sampler is for ", s.size,
                    ": their orders differ; resume with the dataset of the saved run");
  TORCH_CHECK_VALUE(shuffle == s.options.shuffle, "the saved order is ",
                    shuffle ? "shuffled" : "sequential", ", but this sampler's is ",
                    s.options.shuffle ? "shuffled" : "sequential", "; set shuffle as it was");
  TORCH_CHECK_VALUE(epoch >= 0 && consumed >= 0 && consumed < size, "the saved position, epoch ",
                    epoch, " and example ", consumed, " of ", size, ", is out of range");
  s.options.seed = seed;
  s.order_epoch = -1;
  s.start_epoch(epoch);
  s.consumed = s.drawn = consumed;
  s.batch_size = 0;
  s.pass_is_over = false;
}

}  // namespace torchlore
