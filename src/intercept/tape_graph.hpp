#pragma once

#include <torch/csrc/autograd/function.h>

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "autograd_node.hpp"

namespace torchlore::detail {

/// The nodes of a graph in the order of the forward, without keeping them alive.
///
/// A node holds those it leads to, so all of them live as long as the root does; `at` and `edge` may
/// be used no longer than that.
class TapeGraph {
 public:
  explicit TapeGraph(const NodePtr& root);

  size_t size() const { return nodes_.size(); }
  torch::autograd::Node& at(size_t index) const { return *nodes_[index]; }
  /// The index of one of the graph's nodes; -1 for null.
  int64_t index(const torch::autograd::Node* node) const;
  /// Holds the root, and so the graph; null if it is gone.
  NodePtr lock() const { return root_.lock(); }

 private:
  WeakNodePtr root_;
  std::vector<torch::autograd::Node*> nodes_;
  std::unordered_map<const torch::autograd::Node*, int64_t> index_;
};

}  // namespace torchlore::detail
