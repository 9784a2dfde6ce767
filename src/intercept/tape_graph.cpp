#include "tape_graph.hpp"

#include <functional>
#include <limits>
#include <queue>
#include <utility>

namespace torchlore::detail {
namespace {

using torch::autograd::Node;

/// A node and what its order depends on; places are those of discovery.
struct Discovered {
  Node* node = nullptr;
  std::vector<size_t> producers = {};
  std::vector<size_t> consumers = {};
  bool done = false;

  /// Leaves have no place of their own in the forward.
  bool is_leaf() const {
    return producers.empty() && node->sequence_nr() == std::numeric_limits<uint64_t>::max();
  }
};

/// All nodes that `root` leads to, itself first. Not recursive: graphs are deep.
std::vector<Discovered> discover(Node* root) {
  std::vector<Discovered> found{{root}};
  std::unordered_map<const Node*, size_t> place{{root, 0}};
  for (size_t i = 0; i < found.size(); ++i) {
    for (const auto& edge : found[i].node->next_edges()) {
      Node* producer = edge.function.get();
      if (producer == nullptr) continue;
      const auto [at, is_new] = place.emplace(producer, found.size());
      if (is_new) found.push_back({producer});
      found[i].producers.push_back(at->second);
      found[at->second].consumers.push_back(i);
    }
  }
  return found;
}

/// Producers before consumers; among those that are free to run, the one that the forward ran first.
/// A leaf stands before its first consumer.
std::vector<Node*> forward_order(std::vector<Discovered> found) {
  using Ready = std::pair<uint64_t, size_t>;  // sequence number, place
  std::priority_queue<Ready, std::vector<Ready>, std::greater<>> ready;
  std::vector<size_t> waits_for(found.size(), 0);
  for (size_t i = 0; i < found.size(); ++i) {
    for (const size_t p : found[i].producers) waits_for[i] += found[p].is_leaf() ? 0 : 1;
    if (waits_for[i] == 0 && !found[i].is_leaf()) ready.emplace(found[i].node->sequence_nr(), i);
  }
  std::vector<Node*> order;
  order.reserve(found.size());
  for (; !ready.empty();) {
    const size_t next = ready.top().second;
    ready.pop();
    for (const size_t p : found[next].producers) {
      if (!std::exchange(found[p].done, true)) order.push_back(found[p].node);  // a leaf
    }
    found[next].done = true;
    order.push_back(found[next].node);
    for (const size_t c : found[next].consumers) {
      if (--waits_for[c] == 0) ready.emplace(found[c].node->sequence_nr(), c);
    }
  }
  return order;
}

}  // namespace

TapeGraph::TapeGraph(const NodePtr& root)
    : root_(root), nodes_(forward_order(discover(root.get()))) {
  for (size_t i = 0; i < nodes_.size(); ++i) index_.emplace(nodes_[i], static_cast<int64_t>(i));
}

int64_t TapeGraph::index(const Node* node) const { return node == nullptr ? -1 : index_.at(node); }

}  // namespace torchlore::detail
