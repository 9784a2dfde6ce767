#pragma once

#include <functional>
#include <vector>

#include "autograd_node.hpp"
#include "torchlore/intercept/tape.hpp"

namespace torchlore::detail {

class TapeGraph;

/// Runs LibTorch's backward from `root` down to `values` and hands over the gradient of each.
/// `root_gradient` fits the root's output `loss.output`; the graph is alive.
void run_to_values(const std::vector<TapeNode>& nodes, const TapeGraph& graph, const NodePtr& root,
                   TapeValue loss, const at::Tensor& root_gradient, bool keep_graph,
                   const std::vector<TapeValue>& values, const TapeGradientVisitor& visit);

}  // namespace torchlore::detail
