#pragma once

#include <memory>

#include "names.hpp"
#include "pool.hpp"
#include "torchlore/memory/activation_budget.hpp"
#include "value.hpp"

namespace torchlore::budget {

/// All values of one budget: which storage has which, who saved them, and which bytes are kept.
class Store final : public ValueListener {
 public:
  explicit Store(int64_t limit) : limit_(limit) {}

  /// The value that a storage has now; nullptr if it is not known, or was written behind our back.
  Value* find(c10::StorageImpl* storage);
  /// The value that an op reads, or that autograd saves. Bytes that no op made are the caller's:
  /// kept from now on.
  Value& read(const c10::Storage& storage, const c10::VariableVersion& counter);
  /// A new value of bytes that are the caller's.
  Value& add_outside(const c10::Storage& storage, const c10::VariableVersion& counter);
  /// A new value of the storage, made by `record`.
  Value& add(Record& record, Slot slot, size_t index, const c10::Storage& storage,
             const c10::VariableVersion& counter);
  /// Keeps the bytes of a value that cannot be computed again.
  void pin(Value& value, const c10::Storage& storage);
  /// Keeps a copy of bytes that are about to be overwritten.
  void snapshot(Value& value);
  /// The bytes of the storage, which are the value's, are about to be overwritten.
  void retire(Value& value, const c10::StorageImpl* storage);

  /// `saved` is of this value, whose bytes are in `storage`.
  void attach(Saved& saved, Value& value, const c10::Storage& storage);
  void detach(Saved& saved);
  /// What was saved of `before` through a view whose own version did not move is of `after` now, as
  /// in a plain run, where it would see the new bytes (unsafe_chunk and then sigmoid_, in an LSTM
  /// cell).
  void follow(Value& before, Value& after, const c10::Storage& storage);

  /// The value's bytes, or nothing if they are packed or must be computed.
  /// @throws c10::Error if they cannot be, and are gone.
  c10::Storage available(Value& value);
  /// Looks for hand writes into the bytes of a saved value, wherever they are.
  void settle(Value& value);
  void keep(Value& value, const c10::Storage& storage);
  /// Drops what is beyond the budget.
  void fit();
  /// One op's saved values are needed together.
  void note_working_set(int64_t bytes);

  void forget(Value& value) override;

  int64_t limit() const { return limit_; }
  Names& names() { return names_; }
  Pool& pool() { return pool_; }
  ActivationBudgetStats& stats() { return *stats_; }
  std::shared_ptr<const ActivationBudgetStats> shared_stats() const { return stats_; }

 private:
  bool touched(const Value& value, const c10::StorageImpl& storage) const;
  static void watch(Value& value, const c10::Storage& storage);
  void pack(Value& value);
  void resettle(Value& value, const c10::Storage& storage);
  void move(Saved& saved, Value& to, const c10::Storage& storage);

  const int64_t limit_;
  std::shared_ptr<ActivationBudgetStats> stats_ = std::make_shared<ActivationBudgetStats>();
  int64_t pinned_ = 0;
  int64_t working_set_ = 0;
  Pool pool_;
  Names names_;  // last: its values forget themselves in the others
};

/// @throws c10::Error if what cannot be computed again was changed after it was recorded.
void check_unchanged(const Value& value);

}  // namespace torchlore::budget
