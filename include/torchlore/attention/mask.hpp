#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

/// Who sees whom: descriptions of attention masks, which are small, composed by `&`, `|` and `!`,
/// and never held as a matrix.
namespace torchlore {

/// Where query 0 stands among the keys, which matters when there are more of the one than of the
/// other. Query i stands at key position i + (keys - queries) under `bottom_right`, which is what a
/// cache of earlier keys needs, and at key position i under `top_left`.
enum class Align : uint8_t {
  top_left,      ///< query 0 stands at key 0
  bottom_right,  ///< the last query stands at the last key
};

/// The attention that a pair belongs to.
struct Where {
  int64_t queries = 0;  ///< length of the query sequence
  int64_t keys = 0;     ///< length of the key sequence
  int64_t batch = 0;    ///< the batch entry
  int64_t head = 0;     ///< the head, of the queries
};

struct MaskNode;

/// A mask: for each query the keys that it sees. Cheap to copy and immutable.
///
/// ```cpp
/// auto spec = mask::causal() & (mask::window(512) | mask::sinks(4));
/// ```
/// A mask has no length of its own; one serves sequences of all lengths. Masks that compare
/// positions must be told the alignment before they serve a query and a key sequence of different
/// lengths: each by its argument, or all at once by `aligned`.
///
/// **Random masks** choose among the keys that may be seen: those that all other parts of the
/// conjunctions (`&`) around them show. In `causal() & (window(512) | random_top_k(64, seed))` each
/// query sees 64 keys at random among those that are not after it. Parts that are random themselves
/// do not narrow the choice of others. So `a & b` shows what both show, as everywhere, but each
/// random part was drawn in the light of the other one.
class MaskSpec {
 public:
  /// Every query sees every key.
  MaskSpec();

  /// Whether the query sees the key: the definition that layouts and kernels are built to equal.
  /// @throws c10::ValueError if the query, key, head or lengths do not fit each other or the mask,
  ///         or an alignment is missing.
  /// @note Meant for tests and small masks: O(parts), and O(keys · parts) where a part is random.
  bool visible(int64_t query, int64_t key, const Where& where) const;

  /// This mask with the alignment set in all parts that were not given one.
  MaskSpec aligned(Align align) const;

  /// What both show.
  friend MaskSpec operator&(const MaskSpec& a, const MaskSpec& b);
  /// What either shows.
  friend MaskSpec operator|(const MaskSpec& a, const MaskSpec& b);
  /// What the mask does not show. Inside an `&` compilers want it in parentheses: `(!a) & b`.
  friend MaskSpec operator!(const MaskSpec& a);

  /// The mask's description, for the library's own use.
  const MaskNode& node() const { return *node_; }
  /// A mask of a description, for the library's own use.
  explicit MaskSpec(std::shared_ptr<const MaskNode> node) : node_(std::move(node)) {}

 private:
  std::shared_ptr<const MaskNode> node_;
};

/// The mask as its makers write it, such as "causal() & (window(512) | sinks(4))".
std::string to_string(const MaskSpec& spec);
/// As `to_string`.
std::ostream& operator<<(std::ostream& out, const MaskSpec& spec);

/// Makers of masks. All throw `c10::ValueError` for arguments that make no sense.
namespace mask {

/// An alignment, or none where the lengths are always equal.
using MaybeAlign = std::optional<Align>;

/// Every query sees every key.
MaskSpec all();
/// Keys that are not after the query: key <= position of the query.
MaskSpec causal(MaybeAlign align = std::nullopt);
/// Keys less than `size` away on either side: |position - key| < size. Joined with `causal()` these
/// are the last `size` keys, the query's own included.
/// @param size 1 or more.
/// @param align see `Align`.
MaskSpec window(int64_t size, MaybeAlign align = std::nullopt);
/// The first `count` keys, for all queries ("attention sinks"). @param count 0 or more.
/// Source: Xiao et al. (2023), arXiv:2309.17453.
MaskSpec sinks(int64_t count);
/// The first lengths[b] keys of batch entry b: the others are padding.
/// @param lengths one per batch entry, 0 or more; one alone serves all entries.
MaskSpec padding(std::vector<int64_t> lengths);
/// Tokens that see all keys and that all queries see: those at the given positions.
/// @param positions 0 or more; those past the end of a sequence have no effect there.
/// @param align see `Align`.
/// Source: Beltagy et al. (2020), arXiv:2004.05150.
MaskSpec global_tokens(std::vector<int64_t> positions, MaybeAlign align = std::nullopt);
/// A window with holes: keys whose distance is a multiple of `dilation`, less than `size` multiples
/// away on either side. @param size 1 or more. @param dilation 1 (a plain window) or more.
/// @param align see `Align`.
MaskSpec dilated(int64_t size, int64_t dilation, MaybeAlign align = std::nullopt);
/// Every `stride`-th key, the same ones for all queries: key % stride == first.
/// @param stride 1 or more. @param first [0, stride).
MaskSpec strided(int64_t stride, int64_t first = 0);
/// Runs of keys at equal distances, the same ones for all queries: those of which key % stride lies in
/// [first, first + run). @param stride 1 or more. @param first 0 or more. @param run 1 or more, and
/// first + run at most `stride`.
/// Source: the "fixed" pattern of Child et al. (2019), arXiv:1904.10509.
MaskSpec strided_runs(int64_t stride, int64_t first, int64_t run);
/// The query's own key and those 1, 2, 4, 8, … before it: O(log n) keys a query, none after it.
/// Source: Li et al. (2019), arXiv:1907.00235, section 4.2.
MaskSpec log_sparse(MaybeAlign align = std::nullopt);
/// Tokens of the same document, where several are packed one after the other in a sequence. What
/// comes after the last one is padding: it sees nothing, and nothing sees it.
/// @param lengths of the documents, in order, 0 or more each; the same for all batch entries.
/// @param align see `Align`.
MaskSpec documents(std::vector<int64_t> lengths, MaybeAlign align = std::nullopt);
/// The same with other documents in each batch entry. @param lengths one list per batch entry.
MaskSpec documents_per_batch(std::vector<std::vector<int64_t>> lengths,
                             MaybeAlign align = std::nullopt);
/// Causal, but all see the first `prefix` keys: `causal() | sinks(prefix)`.
/// Source: Raffel et al. (2020), arXiv:1910.10683, section 3.2.1.
MaskSpec prefix_lm(int64_t prefix, MaybeAlign align = std::nullopt);
/// Another mask for each head. @param heads one per head of the queries, at least one.
MaskSpec per_head(std::vector<MaskSpec> heads);

/// Options of `random_top_k`, `random_blocks` and `random_sparsity`.
struct RandomOptions {
  bool keep_diagonal = true;  ///< a query's own position is always among the choice, if visible
  MaybeAlign align = std::nullopt;  ///< where that position is; see `Align`
  int64_t block = 64;  ///< of the block-wise forms: queries and keys of a block, 1 or more
  /// What is visible of this is always among the choice, and counts. Not random itself.
  std::optional<MaskSpec> always = std::nullopt;
};

/// `k` keys at random for each query, or all if fewer are visible: a pure function of (seed, head,
/// query), the same for all batch entries and at any number of threads. See `MaskSpec` for what it
/// chooses among. Scattered keys leave few blocks untouched: where time counts, take
/// `random_blocks`.
/// @param k 1 or more. @param seed any value. @param options `block` is not used.
MaskSpec random_top_k(int64_t k, uint64_t seed, const RandomOptions& options = {});
/// `count` blocks of keys at random for each block of queries, among those with a visible pair; or
/// all, if there are fewer. What is always kept (the diagonal takes two blocks where an alignment
/// shifts it) is kept even where it is more than `count`. Otherwise as `random_top_k`.
/// @param count 1 or more. @param seed any value. @param options see there.
MaskSpec random_blocks(int64_t count, uint64_t seed, const RandomOptions& options = {});
/// As `random_blocks`, but leaves out a share of the blocks with a visible pair: of m blocks
/// round((1 - sparsity) · m) stay, at least one.
/// @param sparsity [0, 1). @param seed any value. @param options see there.
MaskSpec random_sparsity(double sparsity, uint64_t seed, const RandomOptions& options = {});

/// Whether a query sees a key.
using Predicate = std::function<bool(int64_t query, int64_t key, const Where& where)>;

/// Options of `predicate`.
struct PredicateOptions {
  bool per_batch = false;          ///< it reads where.batch, and is asked for each batch entry
  bool per_head = false;           ///< it reads where.head, and is asked for each head
  std::string name = "predicate";  ///< in texts
};

/// Any rule. It must give the same answer each time: layouts are kept. It is asked for every pair of
/// all blocks that the rest of a conjunction leaves, on one thread; what it throws passes through.
MaskSpec predicate(Predicate visible, PredicateOptions options = {});
/// A boolean tensor [queries, keys], [heads, queries, keys] or [batch, heads, queries, keys], true
/// where the query sees the key; batch and heads may be 1. Its elements are copied.
/// @throws c10::TypeError for another dtype.
MaskSpec dense(const at::Tensor& visible);

}  // namespace mask
}  // namespace torchlore
