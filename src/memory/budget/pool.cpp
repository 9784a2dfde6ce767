#include "pool.hpp"

#include <algorithm>
#include <array>
#include <cmath>

namespace torchlore::budget {
namespace {

// Beyond this a look at every value for every victim would cost more than the ops themselves.
constexpr size_t kLookAtAll = 128;
constexpr size_t kSample = 64;
// A value that everything reads is not judged by all its readers.
constexpr size_t kMostNeighbours = 32;
// Records walked for the cost of one value.
constexpr size_t kMostRecords = 256;

}  // namespace

void Pool::keep(Value& value, const c10::Storage& storage) {
  if (value.held) return;
  drop(value);  // a packed one
  leave_set(value);
  value.held = storage;
  value.watch = nullptr;  // its mark tells
  value.place = static_cast<int32_t>(kept_.size());
  kept_.push_back(&value);
  bytes_ += value.bytes;
  if (!value.many_valued) add_untried(value);
}

int64_t Pool::size(const Value& value) {
  return value.packed ? value.packed->bytes() : value.bytes;
}

void Pool::add_untried(Value& value) {
  value.untried = static_cast<int32_t>(untried_.size());
  untried_.push_back(&value);
}

void Pool::remove_untried(Value& value) {
  if (value.untried < 0) return;
  untried_.back()->untried = value.untried;
  untried_[static_cast<size_t>(value.untried)] = untried_.back();
  untried_.pop_back();
  value.untried = -1;
}

Value* Pool::untried() {
  while (!untried_.empty()) {
    Value* value = untried_.back();
    remove_untried(*value);
    if (!value->busy) return value;
  }
  return nullptr;
}

void Pool::keep_packed(Value& value, std::shared_ptr<const TwoValued> packed) {
  bytes_ -= value.bytes;
  value.held = c10::Storage();
  value.packed = std::move(packed);
  bytes_ += size(value);
}

void Pool::drop(Value& value) {
  if (value.place < 0) return;
  remove_untried(value);
  auto& place = kept_[static_cast<size_t>(value.place)];
  place = kept_.back();
  place->place = value.place;
  kept_.pop_back();
  value.place = -1;
  bytes_ -= size(value);
  value.held = c10::Storage();
  value.packed = nullptr;
}

void Pool::forget(Value& value) {
  drop(value);
  leave_set(value);
  if (value.id < 0) return;
  // The id may come to name another value while neighbours still list it: then they are judged by a
  // stranger, which costs time at most.
  by_id_[static_cast<size_t>(value.id)] = nullptr;
  free_ids_.push_back(value.id);
  value.id = -1;
}

void Pool::name(Value& value) {
  if (value.id >= 0) return;
  if (free_ids_.empty()) {
    value.id = static_cast<int32_t>(by_id_.size());
    by_id_.push_back(&value);
    return;
  }
  value.id = free_ids_.back();
  free_ids_.pop_back();
  by_id_[static_cast<size_t>(value.id)] = &value;
}

void Pool::link(Value& a, Value& b) {
  name(a);
  name(b);
  if (a.near.size() < kMostNeighbours) a.near.push_back(b.id);
  if (b.near.size() < kMostNeighbours) b.near.push_back(a.id);
}

/// Finds what a value costs from the nearest saved values, and who those are. Done when a value is
/// first judged: under a budget that is never reached it costs nothing.
void Pool::rank(Value& value) {
  value.ranked = true;
  std::vector<Record*> seen{value.record};
  for (size_t next = 0; next < seen.size() && seen.size() < kMostRecords; ++next) {
    value.cost += seen[next]->seconds;
    for (auto& input : seen[next]->inputs) {
      if (!input.value || input.value->pinned) continue;
      if (input.value->was_saved) {
        link(value, *input.value);
      } else if (std::find(seen.begin(), seen.end(), input.value->record) == seen.end()) {
        seen.push_back(input.value->record);
      }
    }
  }
}

double Pool::score(Value& value) {
  if (!value.ranked) rank(value);
  double cost = value.cost;
  std::array<int32_t, kMostNeighbours> counted{};
  size_t sets = 0;
  for (const int32_t id : value.near) {
    const Value* neighbour = by_id_[static_cast<size_t>(id)];
    if (neighbour == nullptr || neighbour->set < 0) continue;
    const int32_t set = root(neighbour->set);
    const auto end = counted.begin() + static_cast<std::ptrdiff_t>(sets);
    if (std::find(counted.begin(), end, set) != end) continue;
    counted[sets++] = set;
    cost += sets_[static_cast<size_t>(set)].cost;
  }
  const double distance = std::abs(position_ - value.needed_at) + 1e-9;
  return cost / (static_cast<double>(size(value)) * distance);
}

Value* Pool::victim() {
  Value* best = nullptr;
  double lowest = 0;
  const size_t size = kept_.size();
  const bool all = size <= kLookAtAll;
  for (size_t i = 0; i < (all ? size : kSample); ++i) {
    // Its own numbers: LibTorch's generator must not move.
    pick_ = pick_ * 6364136223846793005U + 1442695040888963407U;
    Value* value = kept_[all ? i : (pick_ >> 33) % size];
    if (value->busy) continue;
    const double h = score(*value);
    if (best != nullptr && h >= lowest) continue;
    best = value;
    lowest = h;
  }
  return best;
}

void Pool::evict(Value& victim) {
  drop(victim);
  name(victim);
  if (sets_.size() > 4 * by_id_.size() + 1024) rebuild_sets();
  victim.set = static_cast<int32_t>(sets_.size());
  sets_.push_back({victim.set, victim.cost});
  unite_with_neighbours(victim);
}

int32_t Pool::root(int32_t set) {
  auto at = [this](int32_t i) -> Set& { return sets_[static_cast<size_t>(i)]; };
  while (at(set).parent != set) set = at(set).parent = at(at(set).parent).parent;
  return set;
}

void Pool::unite_with_neighbours(Value& value) {
  for (const int32_t id : value.near) {
    const Value* neighbour = by_id_[static_cast<size_t>(id)];
    if (neighbour == nullptr || neighbour->set < 0) continue;
    const int32_t mine = root(value.set);
    const int32_t theirs = root(neighbour->set);
    if (mine == theirs) continue;
    sets_[static_cast<size_t>(theirs)].parent = mine;
    sets_[static_cast<size_t>(mine)].cost += sets_[static_cast<size_t>(theirs)].cost;
  }
}

/// A set cannot be split: a value that is there again takes only its cost out, as in the paper.
void Pool::leave_set(Value& value) {
  if (value.set < 0) return;
  sets_[static_cast<size_t>(root(value.set))].cost -= value.cost;
  value.set = -1;
}

/// Makes the sets anew from the values that are evicted now; every eviction has added one.
void Pool::rebuild_sets() {
  sets_.clear();
  for (auto* value : by_id_) {
    if (value == nullptr || value->set < 0) continue;
    value->set = static_cast<int32_t>(sets_.size());
    sets_.push_back({value->set, value->cost});
  }
  for (auto* value : by_id_) {
    if (value != nullptr && value->set >= 0) unite_with_neighbours(*value);
  }
}

}  // namespace torchlore::budget
