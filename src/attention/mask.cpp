#include "torchlore/attention/mask.hpp"

#include <ATen/core/Formatting.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "mask_node.hpp"
#include "torchlore/core/error.hpp"

namespace torchlore {
namespace {

using detail::make_spec;

void check_not_negative_count(const char* what, int64_t value) {
  TORCH_CHECK_VALUE(value >= 0, what, " must be 0 or more, but is ", value);
}

void check_none_negative(const char* what, const std::vector<int64_t>& values) {
  for (const int64_t value : values) check_not_negative_count(what, value);
}

/// The parts of `a` and `b` in one list, where `a` or `b` of the same kind gives its own: so that
/// (a & b) & c is a & b & c, which matters to the random ones among them.
template <typename Kind>
std::vector<MaskSpec> joined(const MaskSpec& a, const MaskSpec& b) {
  std::vector<MaskSpec> parts;
  for (const MaskSpec* spec : {&a, &b}) {
    if (const auto* same = std::get_if<Kind>(&spec->node().value)) {
      parts.insert(parts.end(), same->parts.begin(), same->parts.end());
    } else {
      parts.push_back(*spec);
    }
  }
  return parts;
}

MaskSpec aligned_copy(const MaskSpec& spec, Align align) {
  auto parts = detail::parts_of(spec.node());
  for (auto& part : parts) part = aligned_copy(part, align);
  auto value = spec.node().value;
  std::visit(
      [&](auto& of) {
        if constexpr (requires { of.align; }) {
          if (!of.align) of.align = align;
        }
      },
      value);
  return detail::with_parts(MaskNode(std::move(value)), std::move(parts));
}

/// Where documents of these lengths begin, and the last one's end.
std::vector<int64_t> bounds_of(const std::vector<int64_t>& lengths) {
  check_none_negative("the length of a document", lengths);
  std::vector<int64_t> bounds = {0};
  for (const int64_t length : lengths) {
    if (length > 0) bounds.push_back(bounds.back() + length);
  }
  return bounds;
}

std::vector<MaskSpec> always_of(const mask::RandomOptions& options) {
  if (!options.always) return {};
  TORCH_CHECK_VALUE(!options.always->node().random,
                    "what a random mask always keeps must not be random, but is ", *options.always);
  return {*options.always};
}

MaskSpec random_blocks_of(int64_t count, double sparsity, uint64_t seed,
                          const mask::RandomOptions& options) {
  check_count("block", options.block);
  return make_spec(nodes::RandomBlocks{count, sparsity, seed, options.block, options.keep_diagonal,
                                       options.align, always_of(options)});
}

bool is_random(const nodes::Value& value) {
  return std::holds_alternative<nodes::RandomTopK>(value) ||
         std::holds_alternative<nodes::RandomBlocks>(value);
}

}  // namespace

MaskNode::MaskNode(nodes::Value of) : value(std::move(of)), random(is_random(value)) {
  for (const auto& part : detail::parts_of(*this)) random = random || part.node().random;
}

MaskSpec::MaskSpec() : MaskSpec(mask::all()) {}

MaskSpec MaskSpec::aligned(Align align) const { return aligned_copy(*this, align); }

MaskSpec operator&(const MaskSpec& a, const MaskSpec& b) {
  if (std::holds_alternative<nodes::Everything>(a.node().value)) return b;
  if (std::holds_alternative<nodes::Everything>(b.node().value)) return a;
  return make_spec(nodes::And{joined<nodes::And>(a, b)});
}

MaskSpec operator|(const MaskSpec& a, const MaskSpec& b) {
  return make_spec(nodes::Or{joined<nodes::Or>(a, b)});
}

MaskSpec operator!(const MaskSpec& a) {
  if (const auto* inner = std::get_if<nodes::Not>(&a.node().value)) return inner->part;
  return make_spec(nodes::Not{a});
}

namespace mask {

MaskSpec all() { return make_spec(nodes::Everything{}); }

MaskSpec causal(MaybeAlign align) { return make_spec(nodes::Causal{align}); }

MaskSpec window(int64_t size, MaybeAlign align) {
  check_count("the size of a window", size);
  return make_spec(nodes::Window{size, align});
}

MaskSpec sinks(int64_t count) {
  check_not_negative_count("the number of sinks", count);
  return make_spec(nodes::Sinks{count});
}

MaskSpec padding(std::vector<int64_t> lengths) {
  TORCH_CHECK_VALUE(!lengths.empty(),
                    "padding() needs a length for each batch entry, or one for all");
  check_none_negative("the length of a sequence", lengths);
  return make_spec(nodes::Padding{std::move(lengths)});
}

MaskSpec global_tokens(std::vector<int64_t> positions, MaybeAlign align) {
  check_none_negative("the position of a global token", positions);
  std::sort(positions.begin(), positions.end());
  positions.erase(std::unique(positions.begin(), positions.end()), positions.end());
  return make_spec(nodes::GlobalTokens{std::move(positions), align});
}

MaskSpec dilated(int64_t size, int64_t dilation, MaybeAlign align) {
  check_count("the size of a dilated window", size);
  check_count("dilation", dilation);
  return make_spec(nodes::Dilated{size, dilation, align});
}

MaskSpec strided(int64_t stride, int64_t first) {
  check_count("stride", stride);
  TORCH_CHECK_VALUE(first >= 0 && first < stride, "first must lie in [0, ", stride,
                    "), the stride, but is ", first);
  return make_spec(nodes::Strided{stride, first});
}

MaskSpec strided_runs(int64_t stride, int64_t first, int64_t run) {
  check_count("run", run);
  check_not_negative_count("first", first);
  TORCH_CHECK_VALUE(run <= stride && first <= stride - run, "a run of ", run, " keys from ", first,
                    " does not fit into a stride of ", stride);
  return make_spec(nodes::StridedRuns{stride, first, run});
}

MaskSpec log_sparse(MaybeAlign align) { return make_spec(nodes::LogSparse{align}); }

MaskSpec documents(std::vector<int64_t> lengths, MaybeAlign align) {
  return documents_per_batch({std::move(lengths)}, align);
}

MaskSpec documents_per_batch(std::vector<std::vector<int64_t>> lengths, MaybeAlign align) {
  TORCH_CHECK_VALUE(
      !lengths.empty(),
      "documents_per_batch() needs a list of lengths for each batch entry, or one for all");
  for (auto& entry : lengths) entry = bounds_of(entry);
  return make_spec(nodes::Documents{std::move(lengths), align});
}

MaskSpec prefix_lm(int64_t prefix, MaybeAlign align) {
  check_not_negative_count("the length of a prefix", prefix);
  return causal(align) | sinks(prefix);
}

MaskSpec per_head(std::vector<MaskSpec> heads) {
  TORCH_CHECK_VALUE(!heads.empty(), "per_head() needs a mask for each head, but got none");
  return make_spec(nodes::PerHead{std::move(heads)});
}

MaskSpec random_top_k(int64_t k, uint64_t seed, const RandomOptions& options) {
  check_count("k", k);
  return make_spec(
      nodes::RandomTopK{k, seed, options.keep_diagonal, options.align, always_of(options)});
}

MaskSpec random_blocks(int64_t count, uint64_t seed, const RandomOptions& options) {
  check_count("the number of random blocks", count);
  return random_blocks_of(count, 0, seed, options);
}

MaskSpec random_sparsity(double sparsity, uint64_t seed, const RandomOptions& options) {
  TORCH_CHECK_VALUE(sparsity >= 0 && sparsity < 1, "sparsity must lie in [0, 1), but is ",
                    sparsity);
  return random_blocks_of(0, sparsity, seed, options);
}

MaskSpec predicate(Predicate visible, PredicateOptions options) {
  TORCH_CHECK_VALUE(visible != nullptr, "predicate() got an empty function");
  return make_spec(nodes::Custom{std::move(visible), std::move(options)});
}

MaskSpec dense(const at::Tensor& visible) {
  TORCH_CHECK_VALUE(visible.defined(), "dense() got an undefined tensor");
  TORCH_CHECK_TYPE(visible.scalar_type() == at::kBool, "dense() takes a bool tensor, true where ",
                   "visible, but got ", visible.scalar_type(), "; compare first, as in mask > 0.5");
  TORCH_CHECK_VALUE(visible.dim() >= 2 && visible.dim() <= 4,
                    "dense() takes [queries, keys], [heads, queries, keys] or [batch, heads, "
                    "queries, keys], but the shape is ",
                    visible.sizes());
  auto shape = visible.sizes().vec();
  shape.insert(shape.begin(), 4 - shape.size(), 1);
  TORCH_CHECK_VALUE(shape[0] > 0 && shape[1] > 0,
                    "dense() needs a batch entry and a head, but the shape is ", visible.sizes());
  const auto copy = visible.detach().to(at::kCPU).contiguous().clone();
  return make_spec(nodes::Dense{copy.view(shape)});
}

}  // namespace mask
}  // namespace torchlore
