#include "torchlore/intercept/parameter_index.hpp"

#include <c10/util/Exception.h>
#include <c10/util/SmallVector.h>
#include <torch/csrc/autograd/functions/accumulate_grad.h>
#include <torch/csrc/autograd/generated/Functions.h>
#include <torch/nn/module.h>

#include <algorithm>
#include <typeinfo>
#include <unordered_map>

namespace torchlore {
namespace {

namespace ag = torch::autograd;

/// Bytes of a storage.
struct Range {
  int64_t begin = 0;
  int64_t end = 0;
  bool holds(const Range& other) const { return begin <= other.begin && other.end <= end; }
  bool operator==(const Range&) const = default;
};

/// From the first to the last element. Not for empty tensors.
Range range_of(const at::Tensor& t) {
  int64_t last = 0;
  for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
  const auto item = static_cast<int64_t>(t.itemsize());
  return {t.storage_offset() * item, (t.storage_offset() + last + 1) * item};
}

/// Stride and size of each dimension that tells elements apart, smallest stride first.
c10::SmallVector<std::pair<int64_t, int64_t>, 6> steps_of(const at::Tensor& t) {
  c10::SmallVector<std::pair<int64_t, int64_t>, 6> steps;
  for (int64_t d = 0; d < t.dim(); ++d) {
    if (t.size(d) > 1 && t.stride(d) != 0) steps.emplace_back(t.stride(d), t.size(d));
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

/// Bytes that the tensor uses, each counted once; 0 where its elements overlap in other ways than
/// by `expand`.
int64_t bytes_used(const at::Tensor& t) {
  int64_t elements = 1;
  int64_t span = 1;  // from the first to the last element of the dimensions so far
  for (const auto& [stride, size] : steps_of(t)) {
    if (stride < span) return 0;
    elements *= size;
    span += (size - 1) * stride;
  }
  return elements * static_cast<int64_t>(t.itemsize());
}

/// The tensor that it is a view of, or the tensor itself.
at::Tensor root_of(const at::Tensor& t) { return t.is_view() ? at::Tensor(t._base()) : t; }

const void* storage_of(const at::Tensor& t) { return t.storage().unsafeGetStorageImpl(); }

/// Whether the node only copies: its input's elements are its output's, maybe in another dtype.
bool copies(const ag::Node& node) {
  return typeid(node) == typeid(ag::generated::ToCopyBackward0) ||
         typeid(node) == typeid(ag::generated::CloneBackward0);
}

/// Whether the node is a view of all elements of its input.
bool views_all(const ag::Node& node) {
  const auto is_one_of = [&]<typename... Nodes>() {
    return ((typeid(node) == typeid(Nodes)) || ...);
  };
  using namespace ag::generated;
  return is_one_of.template
  operator()<TBackward0, TransposeBackward0, PermuteBackward0, ViewBackward0, UnsafeViewBackward0,
             ReshapeAliasBackward0, AliasBackward0, UnsqueezeBackward0, SqueezeBackward0,
             SqueezeBackward1, SqueezeBackward2, ExpandBackward0>();
}

}  // namespace

struct ParameterIndex::State {
  struct Named {
    std::string name;
    at::Tensor tensor;
    bool buffer;
  };
  /// One parameter.
  struct Entry {
    at::Tensor tensor;
    bool buffer;
    const void* storage;
    Range range;
    bool dense;  // its elements fill the range
    std::vector<std::string> names;

    void check_current() const;
    bool current() const;
    /// Whether the tensor, which lies in the entry's storage, is made of the entry's elements.
    bool holds(const at::Tensor& t, const Range& r) const;
    ParameterUse use(const Range& part, bool whole) const;
  };
  /// An entry in the list of its storage, sorted by where it begins, the longer one first.
  struct Place {
    const Entry* entry;
    int64_t reach;  // where the last of the entries up to this one ends
  };

  explicit State(std::vector<Named> all);
  void add(const Named& named);
  void sort_places();

  /// The entry that holds the tensor, the innermost if there are several.
  const Entry* holder(const at::Tensor& t, const Range& range) const;
  /// The entry of the parameter itself, wherever its memory is.
  const Entry* entry_of(const at::Tensor& t) const;
  std::optional<ParameterUse> find_copy(const at::Tensor& t) const;

  std::vector<Named> named;    // as it was given
  std::vector<Entry> entries;  // never grows once filled
  std::unordered_map<const void*, std::vector<Place>> by_storage;
  std::unordered_map<const void*, const Entry*> by_tensor;
};

bool ParameterIndex::State::Entry::current() const {
  return storage == storage_of(tensor) && range == range_of(tensor);
}

void ParameterIndex::State::Entry::check_current() const {
  TORCH_CHECK(current(), "ParameterIndex is out of date: '", names.front(),
              "' has other memory than when the index was made (after model->to(), set_data() or "
              "the like); call refresh()");
}

bool ParameterIndex::State::Entry::holds(const at::Tensor& t, const Range& r) const {
  if (dense) return range.holds(r);
  return range == r && steps_of(t) == steps_of(tensor);  // other ways into the gaps are not known
}

ParameterUse ParameterIndex::State::Entry::use(const Range& part, bool whole) const {
  const auto item = static_cast<int64_t>(tensor.itemsize());
  const int64_t first = (part.begin - range.begin) / item;
  const int64_t behind = (part.end - range.begin + item - 1) / item;
  return {.names = names,
          .parameter = tensor,
          .offset = first,
          .extent = behind - first,
          .whole = whole,
          .buffer = buffer};
}

ParameterIndex::State::State(std::vector<Named> all) : named(std::move(all)) {
  entries.reserve(named.size());
  for (const auto& one : named) {
    if (one.tensor.defined() && one.tensor.has_storage() && one.tensor.numel() > 0) add(one);
  }
  sort_places();
}

void ParameterIndex::State::add(const Named& one) {
  const Range range = range_of(one.tensor);
  auto& places = by_storage[storage_of(one.tensor)];
  for (const auto& place : places) {
    if (place.entry->range == range && steps_of(place.entry->tensor) == steps_of(one.tensor)) {
      const_cast<Entry*>(place.entry)->names.push_back(one.name);
      by_tensor[one.tensor.unsafeGetTensorImpl()] = place.entry;
      return;
    }
  }
  entries.push_back({.tensor = one.tensor,
                     .buffer = one.buffer,
                     .storage = storage_of(one.tensor),
                     .range = range,
                     .dense = one.tensor.is_non_overlapping_and_dense(),
                     .names = {one.name}});
  places.push_back({&entries.back(), 0});
  by_tensor[one.tensor.unsafeGetTensorImpl()] = &entries.back();
}

void ParameterIndex::State::sort_places() {
  for (auto& [storage, places] : by_storage) {
    std::sort(places.begin(), places.end(), [](const Place& a, const Place& b) {
      const Range& left = a.entry->range;
      const Range& right = b.entry->range;
      return left.begin != right.begin ? left.begin < right.begin : left.end > right.end;
    });
    int64_t reach = 0;
    for (auto& place : places) place.reach = reach = std::max(reach, place.entry->range.end);
  }
}

auto ParameterIndex::State::holder(const at::Tensor& t, const Range& range) const -> const Entry* {
  const auto found = by_storage.find(storage_of(t));
  if (found == by_storage.end()) return nullptr;
  const auto& places = found->second;
  auto place =
      std::upper_bound(places.begin(), places.end(), range.begin,
                       [](int64_t begin, const Place& p) { return begin < p.entry->range.begin; });
  while (place != places.begin() && (--place)->reach >= range.end) {
    if (place->entry->holds(t, range)) return place->entry;
  }
  return nullptr;
}

auto ParameterIndex::State::entry_of(const at::Tensor& t) const -> const Entry* {
  const auto found = by_tensor.find(t.unsafeGetTensorImpl());
  return found == by_tensor.end() ? nullptr : found->second;
}

/// For a tensor whose memory is no parameter's: follows its graph, or that of the tensor that it is
/// a view of.
std::optional<ParameterUse> ParameterIndex::State::find_copy(const at::Tensor& t) const {
  const at::Tensor root = root_of(t);
  bool in_place = true;  // the root's elements lie as the parameter's
  const ag::Node* node = root.grad_fn().get();
  const ag::AccumulateGrad* leaf = nullptr;
  while (node != nullptr && (leaf = dynamic_cast<const ag::AccumulateGrad*>(node)) == nullptr) {
    if (!copies(*node)) {
      if (!views_all(*node)) return std::nullopt;
      in_place = false;
    }
    node = node->next_edge(0).function.get();
  }
  const Entry* entry = leaf == nullptr ? nullptr : entry_of(leaf->variable);
  if (entry == nullptr || root._version() != 0) return std::nullopt;  // none, or changed by hand
  entry->check_current();
  auto use = entry->use(entry->range, true);
  use.copy = true;
  const Range part = range_of(t);
  const Range all = range_of(root);
  if (part == all && bytes_used(t) == bytes_used(root)) return use;
  if (!in_place || !entry->dense || root.strides() != entry->tensor.strides()) return std::nullopt;
  const auto item = static_cast<int64_t>(root.itemsize());
  use.offset = (part.begin - all.begin) / item;
  use.extent = (part.end - part.begin) / item;
  use.whole = false;
  return use;
}

ParameterIndex::ParameterIndex(const torch::nn::Module& module,
                               const ParameterIndexOptions& options) {
  std::vector<State::Named> all;
  for (const auto& item : module.named_parameters())
    all.push_back({item.key(), item.value(), false});
  if (options.buffers) {
    for (const auto& item : module.named_buffers()) all.push_back({item.key(), item.value(), true});
  }
  state_ = std::make_shared<State>(std::move(all));
}

ParameterIndex::ParameterIndex(const std::vector<std::pair<std::string, at::Tensor>>& named) {
  std::vector<State::Named> all;
  for (const auto& [name, tensor] : named) all.push_back({name, tensor, false});
  state_ = std::make_shared<State>(std::move(all));
}

std::optional<ParameterUse> ParameterIndex::find(const at::Tensor& tensor) const {
  if (!tensor.defined() || !tensor.has_storage() || tensor.numel() == 0) return std::nullopt;
  const Range range = range_of(tensor);
  if (const auto* entry = state_->holder(tensor, range)) {
    entry->check_current();
    return entry->use(range, bytes_used(tensor) == bytes_used(entry->tensor));
  }
  // A parameter of the index whose memory is not in it.
  const auto* moved = state_->entry_of(root_of(tensor));
  if (moved != nullptr) moved->check_current();
  return state_->find_copy(tensor);
}

bool ParameterIndex::stale() const {
  return !std::all_of(state_->entries.begin(), state_->entries.end(),
                      [](const State::Entry& entry) { return entry.current(); });
}

void ParameterIndex::refresh() { state_ = std::make_shared<State>(state_->named); }

size_t ParameterIndex::size() const { return state_->entries.size(); }

}  // namespace torchlore
