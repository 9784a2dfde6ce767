#include "replay.hpp"

#include <ATen/ops/zeros.h>

#include <algorithm>

namespace torchlore::budget {
namespace {

/// Gives up what a plan kept, also when an op throws in it.
class ClearLive {
 public:
  explicit ClearLive(std::vector<ValueRef>& seen) : seen_(seen) {}
  ~ClearLive() {
    for (auto& value : seen_) {
      value->uses = 0;
      value->live = c10::Storage();
      value->live_packed = nullptr;
    }
    seen_.clear();
  }
  ClearLive(const ClearLive&) = delete;
  ClearLive(ClearLive&&) = delete;
  ClearLive& operator=(const ClearLive&) = delete;
  ClearLive& operator=(ClearLive&&) = delete;

 private:
  std::vector<ValueRef>& seen_;
};

/// The bytes of a value that the plan has, unpacked when they are first used.
c10::Storage live_bytes(Value& value) {
  if (!value.live && value.live_packed) value.live = value.live_packed->unpack();
  return value.live;
}

/// Bytes for a running statistic, whose values do not matter.
c10::Storage scratch(const Input& input, c10::DeviceType device) {
  return at::zeros({input.statistics_bytes}, at::TensorOptions(device).dtype(at::kByte)).storage();
}

}  // namespace

std::vector<c10::Storage> Replay::run(const c10::SmallVectorImpl<Value*>& targets) {
  const ClearLive clear(seen_);
  ++plan_;
  for (Value* target : targets) need(*target);
  execute_plan();
  std::vector<c10::Storage> bytes;
  for (Value* target : targets) bytes.push_back(live_bytes(*target));
  return bytes;
}

c10::Storage Replay::run_forced(Value& value) {
  const ClearLive clear(seen_);
  ++plan_;
  forced_ = &value;
  forced_bytes_ = c10::Storage();
  need(value);
  execute_plan();
  forced_ = nullptr;
  return std::move(forced_bytes_);
}

void Replay::need(Value& value) {
  ++value.uses;
  todo_.push_back(&value);
}

/// Finds the ops that are needed, back to what is there.
void Replay::plan() {
  records_.clear();
  while (!todo_.empty()) {
    Value& value = *todo_.back();
    todo_.pop_back();
    if (value.plan == plan_) continue;
    value.plan = plan_;
    seen_.emplace_back(&value);
    if (&value != forced_) {
      value.live = store_.available(value);
      if (!value.live) value.live_packed = value.packed;
    }
    if (value.live || value.live_packed || value.record->plan == plan_) continue;
    value.record->plan = plan_;
    records_.push_back(value.record);
    for (auto& input : value.record->inputs) {
      if (input.value) need(*input.value);
    }
  }
  // The order in which they ran puts what is made before what needs it.
  std::sort(records_.begin(), records_.end(),
            [](const Record* a, const Record* b) { return a->sequence < b->sequence; });
}

void Replay::execute_plan() {
  plan();
  if (!records_.empty()) ++store_.stats().replays;
  for (Record* record : records_) execute(*record);
}

Replay::Bytes Replay::take_inputs(Record& record) {
  Bytes bytes;
  for (auto& input : record.inputs) {
    if (input.statistics_bytes >= 0) {
      bytes.push_back(scratch(input, record.device));
      continue;
    }
    bytes.push_back(input.value ? live_bytes(*input.value) : c10::Storage());
  }
  for (auto& input : record.inputs) {  // what is not needed later is let go
    if (!input.value || --input.value->uses > 0) continue;
    input.value->live = c10::Storage();
    input.value->live_packed = nullptr;
  }
  for (size_t i = 0; i < bytes.size(); ++i) {
    auto& input = record.inputs[i];
    if (!input.written || !input.value) continue;
    const auto is_same = [&](size_t j) {
      return record.inputs[j].value.get() == input.value.get();
    };
    size_t ours = 0;
    for (size_t j = 0; j < bytes.size(); ++j) ours += is_same(j) ? 1 : 0;
    if (bytes[i].use_count() <= ours) {  // nobody else's: overwritten where it is
      if (input.value->home.lock().get() == bytes[i].unsafeGetStorageImpl()) {
        input.value->current = false;
      }
      continue;
    }
    const auto copy = clone_storage(bytes[i]);
    for (size_t j = 0; j < bytes.size(); ++j) {
      if (is_same(j)) bytes[j] = copy;
    }
  }
  return bytes;
}

bool Replay::needs_saves(Record& record) const {
  bool needed = forced_ != nullptr;
  record.each_value([&](const Value& value) {
    if (value.slot != Slot::saved || value.pinned) return;
    needed |= awaited(value) || (value.saver_count > 0 && !value.kept());
  });
  return needed;
}

void Replay::execute(Record& record) {
  ++store_.stats().replayed_ops;
  auto inputs = take_inputs(record);
  auto replayed = run_again(record, inputs, needs_saves(record));
  record.each_value([&](Value& value) {
    if (value.pinned) return;
    if (value.slot == Slot::argument) give(value, inputs[value.index]);
    if (value.slot == Slot::output) give(value, replayed.results[value.index]);
    if (value.slot == Slot::saved && !replayed.saves.empty()) {
      give(value, replayed.saves[value.index]);
    }
  });
  inputs.clear();
  replayed = {};
  store_.fit();
}

void Replay::give(Value& value, const c10::Storage& bytes) {
  TORCH_CHECK(bytes && static_cast<int64_t>(bytes.nbytes()) == value.bytes,
              "ActivationBudget: ", value.record->facts->op.schema().name(),
              " gave a result of another size when it was run again; it is not a function of its "
              "arguments");
  if (&value == forced_) {
    forced_bytes_ = bytes;
    return;
  }
  if (value.saver_count > 0 && !value.kept()) store_.settle(value);
  if (value.saver_count > 0 && !value.kept()) {
    value.move_to(bytes);
    store_.keep(value, bytes);
  }
  if (awaited(value)) value.live = bytes;
}

}  // namespace torchlore::budget
