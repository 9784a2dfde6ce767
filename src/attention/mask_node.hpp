#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <memory>
#include <utility>
#include <variant>
#include <vector>

#include "layout_cache.hpp"
#include "torchlore/attention/mask.hpp"

/// What a `MaskSpec` holds. The meaning of each kind is said at its maker in mask.hpp; arguments were
/// checked there.
namespace torchlore {
namespace nodes {

using mask::MaybeAlign;

struct Everything {};
struct Causal {
  MaybeAlign align;
};
struct Window {
  int64_t size;
  MaybeAlign align;
};
struct Sinks {
  int64_t count;
};
struct Padding {
  std::vector<int64_t> lengths;  ///< by batch entry, or one for all
};
struct GlobalTokens {
  std::vector<int64_t> positions;  ///< ascending, all different
  MaybeAlign align;
};
struct Dilated {
  int64_t size;
  int64_t dilation;
  MaybeAlign align;
};
struct Strided {
  int64_t stride;
  int64_t first;
};
struct StridedRuns {
  int64_t stride;
  int64_t first;
  int64_t run;
};
struct LogSparse {
  MaybeAlign align;
};
struct Documents {
  /// By batch entry, or one list for all: where each document begins, and the last one's end.
  /// Documents of length 0 are left out.
  std::vector<std::vector<int64_t>> bounds;
  MaybeAlign align;
};
struct RandomTopK {
  int64_t k;
  uint64_t seed;
  bool keep_diagonal;
  MaybeAlign align;
  std::vector<MaskSpec> always;  ///< one or none
};
struct RandomBlocks {
  int64_t count;    ///< 0: by sparsity
  double sparsity;  ///< of the visible blocks
  uint64_t seed;
  int64_t block;
  bool keep_diagonal;
  MaybeAlign align;
  std::vector<MaskSpec> always;  ///< one or none
};
struct PerHead {
  std::vector<MaskSpec> heads;
};
struct Custom {
  mask::Predicate visible;
  mask::PredicateOptions options;
};
struct Dense {
  at::Tensor visible;  ///< [batch or 1, heads or 1, queries, keys], bool, contiguous, on the CPU
};
/// Two parts or more; none is an `And` itself.
struct And {
  std::vector<MaskSpec> parts;
};
/// Two parts or more; none is an `Or` itself.
struct Or {
  std::vector<MaskSpec> parts;
};
struct Not {
  MaskSpec part;
};

using Value = std::variant<Everything, Causal, Window, Sinks, Padding, GlobalTokens, Dilated,
                           Strided, StridedRuns, LogSparse, Documents, RandomTopK, RandomBlocks,
                           PerHead, Custom, Dense, And, Or, Not>;

}  // namespace nodes

/// One node of the tree.
struct MaskNode {
  explicit MaskNode(nodes::Value of);

  nodes::Value value;
  bool random = false;  ///< whether it, or a part of it, is a random choice
  /// The layouts that were built of the tree whose root this is.
  mutable detail::LayoutCache layouts;
};

namespace detail {

/// A set of lambdas as one visitor.
template <typename... F>
struct Overloaded : F... {
  using F::operator()...;
};
template <typename... F>
Overloaded(F...) -> Overloaded<F...>;

/// A mask of one node.
inline MaskSpec make_spec(nodes::Value value) {
  return MaskSpec(std::make_shared<const MaskNode>(std::move(value)));
}

/// The parts of a node, in order; none for a leaf.
std::vector<MaskSpec> parts_of(const MaskNode& node);

/// The node with its parts replaced, in the order of `parts_of`.
MaskSpec with_parts(const MaskNode& node, std::vector<MaskSpec> parts);

/// The key position of query 0. @throws c10::ValueError if the lengths differ and none was said;
/// `node` is named.
int64_t query_offset(const mask::MaybeAlign& align, int64_t queries, int64_t keys,
                     const nodes::Value& node);

/// Checks that the mask can serve these lengths, batch entries and heads, of which 1 means any.
/// @throws c10::ValueError naming the part that cannot.
void check_fits(const MaskNode& node, int64_t queries, int64_t keys, int64_t batch, int64_t heads);

/// Whether the mask differs between batch entries.
bool depends_on_batch(const MaskNode& node);
/// Whether the mask differs between heads.
bool depends_on_head(const MaskNode& node);

/// Whether a part of the mask is a predicate.
bool has_predicate(const MaskNode& node);

/// What narrows the choice of a random part: the masks that are joined to it by conjunctions.
using Among = std::vector<const MaskNode*>;

/// `among`, and what a random part always keeps: so that it keeps what is visible of that.
template <typename Random>
Among kept_of(const Random& of, Among among) {
  for (const auto& always : of.always) among.push_back(&always.node());
  return among;
}

/// `outer`, and all parts of the conjunction but number `part`, except those that are random.
Among among_of(const nodes::And& conjunction, size_t part, const Among& outer);

/// The entry of a list that holds one for each index, or one for all.
template <typename T>
const T& entry_of(const std::vector<T>& list, int64_t index) {
  if (list.size() == 1) return list.front();
  TORCH_CHECK_VALUE(index < static_cast<int64_t>(list.size()), "there is no entry ", index,
                    " in a mask for ", list.size(), " batch entries or heads");
  return list[static_cast<size_t>(index)];
}

}  // namespace detail
}  // namespace torchlore
