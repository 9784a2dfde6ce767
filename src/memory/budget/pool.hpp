#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "value.hpp"

namespace torchlore::budget {

/// The saved values whose bytes are kept alive, and the choice of whom to let go.
///
/// The victim is the value with the lowest h = cost / (bytes * distance): cheap to compute again,
/// large, and not needed for long. `cost` counts the op, and the evicted neighbours that would have
/// to be computed again with it; they are kept as sets that are united when neighbours are evicted
/// (union-find), so that the cost of a neighbourhood is one look-up.
/// Source: Kirisame et al. (2021), Dynamic Tensor Rematerialization, arXiv:2006.09616, h_DTR^eq.
class Pool {
 public:
  /// Keeps the bytes of a value, also in place of packed ones. Pinned values are not kept here.
  void keep(Value& value, const c10::Storage& storage);
  /// Lets go of them; nothing if it has none here.
  void drop(Value& value);
  /// Forgets a value that dies.
  void forget(Value& value);
  /// The next value that nobody has tried to pack; nullptr if there is none. It is asked once.
  Value* untried();
  /// Keeps bits in place of the bytes of a value.
  void keep_packed(Value& value, std::shared_ptr<const TwoValued> packed);
  /// Bytes kept.
  int64_t bytes() const { return bytes_; }

  /// Where the run is, on the clock of the forward.
  void set_position(double seconds) { position_ = seconds; }
  /// The next victim; nullptr if all that is left is in use.
  Value* victim();
  double score(Value& value);
  /// Lets go of a victim: from now on its neighbours cost more.
  void evict(Value& victim);

 private:
  struct Set {
    int32_t parent = 0;
    double cost = 0;
  };
  static int64_t size(const Value& value);
  void add_untried(Value& value);
  void remove_untried(Value& value);
  int32_t root(int32_t set);
  void rank(Value& value);
  void link(Value& a, Value& b);
  void name(Value& value);
  void leave_set(Value& value);
  void rebuild_sets();
  void unite_with_neighbours(Value& value);

  std::vector<Value*> kept_;
  std::vector<Value*> untried_;
  std::vector<Value*> by_id_;
  std::vector<int32_t> free_ids_;
  std::vector<Set> sets_;
  int64_t bytes_ = 0;
  double position_ = 0;
  uint64_t pick_ = 1;
};

}  // namespace torchlore::budget
