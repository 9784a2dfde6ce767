#pragma once

#include <ATen/core/ivalue.h>
#include <c10/core/TensorImpl.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/SmallVector.h>

#include <memory>
#include <optional>
#include <vector>

#include "hand_writes.hpp"
#include "op_facts.hpp"
#include "random_state.hpp"
#include "tensor_view.hpp"
#include "two_valued.hpp"

namespace torchlore::budget {

struct Record;
struct Saved;

/// Where a value comes out of its op again.
enum class Slot : uint8_t {
  output,    // its k-th result that is a tensor
  saved,     // the k-th tensor that it saved: masks, statistics, workspaces, casts
  argument,  // its k-th input, which it wrote
  outside,   // no op made it
};

/// One version of the bytes of one storage. An op that writes in place makes a new value; a view
/// makes none.
struct Value {
  Value(Record& of, Slot in, size_t at, const c10::Storage& storage, c10::VariableVersion counter);
  Value(const Value&) = delete;
  Value(Value&&) = delete;
  Value& operator=(const Value&) = delete;
  Value& operator=(Value&&) = delete;
  ~Value() = default;

  /// Whether nothing has been written over it, as far as versions tell.
  bool valid() const {
    return current && (!version.enabled() || version.current_version() == recorded_version);
  }
  /// Whether the budget keeps it, in one form or the other.
  bool kept() const { return held || packed; }
  /// Its bytes are there from now on.
  void move_to(const c10::Storage& storage);

  Record* const record;
  const Slot slot;
  bool pinned = false;       // cannot be computed again
  bool outside = false;      // pinned, and made by the caller, who keeps it anyway
  bool current = true;       // no op has written over it
  bool marked = false;       // see hand_writes.hpp
  bool was_saved = false;    // autograd saved it at least once
  bool many_valued = false;  // an attempt to pack it found more than two bit patterns
  const uint32_t index;      // in its slot
  uint32_t recorded_version = 0;
  const int64_t bytes;
  c10::VariableVersion version;  // of the storage it was recorded in
  c10::weak_intrusive_ptr<c10::StorageImpl> home;
  c10::Storage held;                        // keeps the bytes alive: pinned, or in the pool
  std::unique_ptr<WriteWatch> watch;        // of a home that others own, while nothing is held
  std::shared_ptr<const TwoValued> packed;  // or what stands for them in the pool

  Saved* savers = nullptr;  // who saved it: a list through Saved::next_saver
  int32_t saver_count = 0;

  // Eviction (pool.hpp).
  bool busy = false;     // the node that runs in backward uses it
  bool ranked = false;   // `cost` and `near` are known
  int32_t place = -1;    // in the pool
  int32_t untried = -1;  // among the pool's values that may have two bit patterns
  int32_t set = -1;      // of evicted neighbours
  int32_t id = -1;       // names it in the `near` of others
  double cost = 0;       // seconds from the nearest saved values to this one
  double needed_at = 0;  // when the last of its savers ran, on the clock of the forward
  c10::SmallVector<int32_t, 4> near;  // ids of saved values one step away

  // One replay (replay.hpp).
  uint32_t plan = 0;  // the plan that it was last in
  int32_t uses = 0;   // still to come
  c10::Storage live;
  std::shared_ptr<const TwoValued> live_packed;  // unpacked when it is used
};

/// A counted reference to a value: it keeps the record of the value's op, and through that op's
/// inputs all that is needed to compute it again. Counts are not atomic: all of it happens under the
/// lock of one State.
class ValueRef {
 public:
  ValueRef() = default;
  explicit ValueRef(Value* value);
  ValueRef(const ValueRef& other) : ValueRef(other.value_) {}
  ValueRef(ValueRef&& other) noexcept : value_(std::exchange(other.value_, nullptr)) {}
  ValueRef& operator=(ValueRef other) noexcept {
    std::swap(value_, other.value_);
    return *this;
  }
  ~ValueRef();

  Value* get() const { return value_; }
  Value* operator->() const { return value_; }
  Value& operator*() const { return *value_; }
  explicit operator bool() const { return value_ != nullptr; }

 private:
  Value* value_ = nullptr;
};

/// A tensor that an op read.
struct Input {
  TensorView view;
  ValueRef value;    // nullptr: `other` has the tensor
  at::Tensor other;  // not plain: kept as it is
  uint32_t other_version = 0;
  uint32_t argument = 0;
  int32_t element = -1;           // of a list
  int64_t statistics_bytes = -1;  // a running statistic that the op updates: any bytes will do
  bool written = false;
  bool requires_grad = false;
};

/// What the pool must hear of when a record dies.
class ValueListener {
 public:
  virtual void forget(Value& value) = 0;

 protected:
  ~ValueListener() = default;
};

/// One op that ran: all that is needed to run it again. For bytes that no op made it is empty.
struct Record {
  explicit Record(ValueListener& told) : listener(told) {}
  Record(const Record&) = delete;
  Record(Record&&) = delete;
  Record& operator=(const Record&) = delete;
  Record& operator=(Record&&) = delete;
  ~Record();

  Value& add(Slot slot, size_t index, const c10::Storage& storage, c10::VariableVersion counter);
  template <typename F>
  void each_value(const F& f) {
    if (first) f(*first);
    for (auto& value : more) f(*value);
  }
  void retain() { ++references; }
  void release();

  ValueListener& listener;
  const OpFacts* facts = nullptr;
  uint64_t sequence = 0;
  double seconds = 0;   // that the op took
  double finished = 0;  // on the clock of the forward: the sum of all ops so far
  int64_t references = 0;
  c10::SmallVector<Input, 2> inputs;
  c10::SmallVector<c10::IValue, 4> arguments;  // without tensors; for a list of them its length
  int64_t saves = -1;  // tensors that autograd saved in it; -1 if it did not ask us first
  c10::impl::LocalDispatchKeySet keys{c10::impl::PODLocalDispatchKeySet{}};
  c10::DeviceType device = c10::kCPU;
  std::optional<c10::ScalarType> autocast;
  bool grad_mode = false;
  std::unique_ptr<RandomState> random;
  std::optional<Value> first;  // most ops make one value; it needs no allocation
  std::vector<std::unique_ptr<Value>> more;
  uint32_t plan = 0;
};

/// Keeps a record while it is being made.
class RecordRef {
 public:
  explicit RecordRef(Record* record) : record_(record) { record_->retain(); }
  RecordRef(const RecordRef&) = delete;
  RecordRef(RecordRef&& other) noexcept : record_(std::exchange(other.record_, nullptr)) {}
  RecordRef& operator=(const RecordRef&) = delete;
  RecordRef& operator=(RecordRef&&) = delete;
  ~RecordRef() {
    if (record_ != nullptr) record_->release();
  }
  Record* operator->() const { return record_; }
  Record& operator*() const { return *record_; }

 private:
  Record* record_;
};

/// One tensor that autograd saved.
struct Saved {
  ValueRef value;
  TensorView view;
  at::Tensor other;      // not plain: kept as it is
  c10::Storage pending;  // while its op runs
  c10::VariableVersion version;
  uint32_t saved_version = 0;
  double saved_at = 0;
  uint64_t group = 0;  // the op that saved it, 0 outside of any
  Saved* next_saver = nullptr;
  Saved** saver_link = nullptr;  // what points to this one in the value's list
  Saved* group_next = this;      // a ring of all that one op saved: unpacked together
  Saved* group_previous = this;

  /// Whether its own version counter says that it is as it was.
  bool unchanged() const { return version.enabled() && version.current_version() == saved_version; }
  void join(Saved& other_one);
  void leave_group();
};

}  // namespace torchlore::budget
