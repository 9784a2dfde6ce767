#include "state.hpp"

#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <chrono>

#include "draft.hpp"
#include "hand_writes.hpp"
#include "scopes.hpp"
#include "torchlore/intercept/op_call.hpp"

namespace torchlore::budget {
namespace {

using Lock = std::lock_guard<std::recursive_mutex>;

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// The op that this thread is in the middle of.
thread_local Draft* running = nullptr;

class Running {
 public:
  explicit Running(Draft* draft) : previous_(running) { running = draft; }
  ~Running() { running = previous_; }
  Running(const Running&) = delete;
  Running(Running&&) = delete;
  Running& operator=(const Running&) = delete;
  Running& operator=(Running&&) = delete;

 private:
  Draft* previous_;
};

/// Lets go of a lock while in scope.
class Unlocked {
 public:
  explicit Unlocked(std::unique_lock<std::recursive_mutex>& lock) : lock_(lock) { lock_.unlock(); }
  ~Unlocked() { lock_.lock(); }
  Unlocked(const Unlocked&) = delete;
  Unlocked(Unlocked&&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;
  Unlocked& operator=(Unlocked&&) = delete;

 private:
  std::unique_lock<std::recursive_mutex>& lock_;
};

}  // namespace

State::State(Bytes limit, ActivationBudgetOptions options)
    : options_(std::move(options)), store_(limit.count()) {}

State*& State::innermost() {
  thread_local State* state = nullptr;
  return state;
}

bool State::records_here() const {
  return innermost() == this && open_.load(std::memory_order_relaxed) &&
         torch::autograd::get_current_graph_task_id() == -1;
}

bool State::trusts(const OpFacts& facts) const {
  if (facts.known) return true;
  const auto& name = facts.op.schema().name();
  const auto& pure = options_.pure_namespaces;
  return std::any_of(pure.begin(), pure.end(),
                     [&](const std::string& space) { return name.starts_with(space + "::"); });
}

void State::run(OpCall& call, const OpFacts& facts) {
  const bool trusted = trusts(facts);
  std::unique_lock<std::recursive_mutex> lock(mutex_);
  ++store_.stats().ops;
  Draft draft(store_, facts, call.stack(), trusted, saves_come_to(*this));
  double seconds = 0;
  {
    const Unlocked unlocked(lock);
    const Running now(&draft);
    const double start = seconds_now();
    call.run();
    seconds = seconds_now() - start;
  }
  clock_ += seconds;
  draft.finish(call.stack(), ++sequence_, clock_, seconds);
  store_.pool().set_position(clock_);
  store_.fit();
  check_floor();
}

void State::check_floor() const {
  const auto& stats = *store_.shared_stats();
  if (options_.below_floor != BelowFloor::error || store_.limit() == 0) return;
  TORCH_CHECK_VALUE(stats.floor_bytes <= store_.limit(), "ActivationBudget: the budget of ",
                    to_string(Bytes(store_.limit())),
                    " is below the floor of this model: ", to_string(Bytes(stats.pinned_bytes)),
                    " cannot be computed again, and one node of backward needs ",
                    to_string(Bytes(stats.floor_bytes - stats.pinned_bytes)),
                    " at once. Give it at least ", to_string(Bytes(stats.floor_bytes)));
}

void State::pack(Saved& saved, const at::Tensor& tensor) {
  const Lock lock(mutex_);
  ++store_.stats().saved_tensors;
  if (!is_plain(tensor)) {
    saved.other = tensor.detach();
    if (!tensor.is_inference()) {
      saved.version = torch::autograd::impl::version_counter(tensor);
      saved.saved_version = saved.version.current_version();
    }
    if (running != nullptr) running->save(saved, c10::Storage());
    return;
  }
  saved.view = TensorView(tensor);
  saved.version = torch::autograd::impl::version_counter(tensor);
  saved.saved_version = saved.version.current_version();
  saved.saved_at = clock_;
  if (running != nullptr) {
    running->save(saved, tensor.storage());  // what it is shows when the op is done
  } else {
    // Outside of any op: a custom autograd function.
    store_.attach(saved, store_.read(tensor.storage(), saved.version), tensor.storage());
  }
}

void State::release(Saved& saved) {
  const Lock lock(mutex_);
  saved.leave_group();
  if (running != nullptr) running->forget(saved);
  if (!saved.value) return;
  const ValueRef value = saved.value;
  store_.detach(saved);
  if (value->saver_count > 0 || !value->busy) return;
  value->busy = false;
  std::erase_if(in_use_, [&](const InUse& use) { return use.value.get() == value.get(); });
}

/// The nodes of backward run one after the other: a new one shows that the last is done.
void State::start_node(const Saved& saved) {
  if (saved.group == node_ && saved.group != 0) return;
  end_node();
  node_ = saved.group;
  backward_ = torch::autograd::get_current_graph_task_id();
  store_.pool().set_position(saved.saved_at);
}

void State::end_node() {
  const bool same_backward = backward_ == torch::autograd::get_current_graph_task_id();
  for (auto& use : in_use_) {
    use.value->busy = false;
    // The node's kernel may have read through pointers that could write. Between two backward
    // passes it may have been the user.
    if (same_backward && use.value->marked) mark_storage(*use.bytes.unsafeGetStorageImpl());
  }
  in_use_.clear();
  node_ = 0;
}

c10::Storage State::in_use(const Value& value) const {
  for (const auto& use : in_use_) {
    if (use.value.get() == &value) return use.bytes;
  }
  return {};
}

/// Makes available all that the op of `saved` saved, in one plan.
void State::bring_in(Saved& saved) {
  c10::SmallVector<Value*, 6> targets;
  Saved* member = &saved;
  do {
    if (member->value) store_.settle(*member->value);
    Value* value = member->value.get();
    if (value != nullptr && !value->busy && !value->pinned &&
        std::find(targets.begin(), targets.end(), value) == targets.end()) {
      targets.push_back(value);
    }
    member = member->group_next;
  } while (member != &saved);
  for (Value* target : targets) target->busy = true;  // not to be dropped for one another
  std::vector<c10::Storage> bytes;
  try {
    bytes = replay_.run(targets);
  } catch (...) {
    for (Value* target : targets) target->busy = false;
    throw;
  }
  for (size_t i = 0; i < targets.size(); ++i) {
    if (!targets[i]->held) {
      if (targets[i]->home.lock().get() != bytes[i].unsafeGetStorageImpl()) {
        targets[i]->move_to(bytes[i]);
      }
      store_.keep(*targets[i], bytes[i]);
    }
    in_use_.push_back({ValueRef(targets[i]), bytes[i]});
  }
  store_.fit();
}

at::Tensor State::unpack(Saved& saved) {
  const Lock lock(mutex_);
  if (saved.other.defined()) {
    TORCH_CHECK(!saved.version.enabled() || saved.unchanged(), "ActivationBudget: a ",
                saved.other.layout(), " tensor of shape ", saved.other.sizes(),
                " that backward needs was changed in place after the forward pass saved it. Change "
                "it after backward, or change a copy");
    return saved.other;
  }
  start_node(saved);
  store_.settle(*saved.value);
  if (saved.value->pinned) {
    check_unchanged(*saved.value);
    return saved.view.over(saved.value->held);
  }
  if (!in_use(*saved.value)) bring_in(saved);
  auto tensor = saved.view.over(saved.value->pinned ? saved.value->held : in_use(*saved.value));
  if (options_.verify && !saved.value->pinned) verify(saved, tensor);
  return tensor;
}

void State::verify(Saved& saved, const at::Tensor& tensor) {
  auto& stats = store_.stats();
  ++stats.verified;
  const auto again = saved.view.over(replay_.run_forced(*saved.value));
  if (same_bytes(tensor, again)) return;
  ++stats.mismatched;
  const auto name = c10::toString(saved.value->record->facts->op.operator_name());
  if (std::find(stats.mismatched_ops.begin(), stats.mismatched_ops.end(), name) ==
      stats.mismatched_ops.end()) {
    stats.mismatched_ops.push_back(name);
  }
}

void State::close() {
  const Lock lock(mutex_);
  open_ = false;
  store_.names().clear();
  const auto& stats = store_.stats();
  if (store_.limit() == 0 || stats.floor_bytes <= store_.limit()) return;
  if (options_.below_floor != BelowFloor::warn) return;
  TORCH_WARN("ActivationBudget: the budget of ", to_string(Bytes(store_.limit())),
             " is below the floor of this model; what it keeps may take up to ",
             to_string(Bytes(stats.floor_bytes)), ", of which ",
             to_string(Bytes(stats.pinned_bytes)), " cannot be computed again");
}

}  // namespace torchlore::budget
