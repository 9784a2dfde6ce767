#include "mask_node.hpp"

#include <c10/util/Exception.h>

#include <algorithm>

namespace torchlore::detail {
namespace {

/// Checks a list that holds one entry for each index, or one for all.
void check_entries(size_t have, int64_t need, const char* maker, const char* what,
                   const char* option) {
  const auto count = static_cast<int64_t>(have);
  TORCH_CHECK_VALUE(count == 1 || count == need, maker, " is for ", count, " ", what,
                    ", but the layout for ", need, "; set BlockLayoutOptions::", option, " to ",
                    count);
}

void check_dense(const nodes::Dense& dense, int64_t queries, int64_t keys, int64_t batch,
                 int64_t heads) {
  const auto shape = dense.visible.sizes();
  TORCH_CHECK_VALUE(shape[2] == queries && shape[3] == keys, "dense() holds a mask of ", shape[2],
                    " queries and ", shape[3], " keys, but is asked for ", queries, " and ", keys);
  check_entries(static_cast<size_t>(shape[0]), batch, "dense()", "batch entries", "batch");
  check_entries(static_cast<size_t>(shape[1]), heads, "dense()", "heads", "heads");
}

bool any_part(const MaskNode& node, bool (*holds)(const MaskNode&)) {
  const auto parts = parts_of(node);
  return std::any_of(parts.begin(), parts.end(),
                     [&](const MaskSpec& part) { return holds(part.node()); });
}

}  // namespace

std::vector<MaskSpec> parts_of(const MaskNode& node) {
  return std::visit(Overloaded{[](const nodes::RandomTopK& of) { return of.always; },
                               [](const nodes::RandomBlocks& of) { return of.always; },
                               [](const nodes::PerHead& of) { return of.heads; },
                               [](const nodes::And& of) { return of.parts; },
                               [](const nodes::Or& of) { return of.parts; },
                               [](const nodes::Not& of) { return std::vector<MaskSpec>{of.part}; },
                               [](const auto&) { return std::vector<MaskSpec>(); }},
                    node.value);
}

MaskSpec with_parts(const MaskNode& node, std::vector<MaskSpec> parts) {
  auto value = node.value;
  std::visit(Overloaded{[&](nodes::RandomTopK& of) { of.always = std::move(parts); },
                        [&](nodes::RandomBlocks& of) { of.always = std::move(parts); },
                        [&](nodes::PerHead& of) { of.heads = std::move(parts); },
                        [&](nodes::And& of) { of.parts = std::move(parts); },
                        [&](nodes::Or& of) { of.parts = std::move(parts); },
                        [&](nodes::Not& of) { of.part = parts.front(); }, [](auto&) {}},
             value);
  return make_spec(std::move(value));
}

int64_t query_offset(const mask::MaybeAlign& align, int64_t queries, int64_t keys,
                     const nodes::Value& node) {
  if (queries == keys) return 0;
  TORCH_CHECK_VALUE(align.has_value(), to_string(make_spec(node)), " compares positions, and the ",
                    queries, " queries and ", keys,
                    " keys differ in number: say where the queries stand, as in "
                    "spec.aligned(Align::bottom_right)");
  return *align == Align::bottom_right ? keys - queries : 0;
}

void check_fits(const MaskNode& node, int64_t queries, int64_t keys, int64_t batch, int64_t heads) {
  const auto check_align = [&](const auto& leaf) {
    if constexpr (requires { leaf.keep_diagonal; }) {
      if (!leaf.keep_diagonal) return;
    }
    if constexpr (requires { leaf.align; }) query_offset(leaf.align, queries, keys, node.value);
  };
  std::visit(
      Overloaded{[&](const nodes::Padding& of) {
                   check_entries(of.lengths.size(), batch, "padding()", "batch entries", "batch");
                 },
                 [&](const nodes::Documents& of) {
                   check_entries(of.bounds.size(), batch, "documents_per_batch()", "batch entries",
                                 "batch");
                   check_align(of);
                 },
                 [&](const nodes::PerHead& of) {
                   check_entries(of.heads.size(), heads, "per_head()", "heads", "heads");
                 },
                 [&](const nodes::Dense& of) { check_dense(of, queries, keys, batch, heads); },
                 check_align},
      node.value);
  for (const auto& part : parts_of(node)) check_fits(part.node(), queries, keys, batch, heads);
}

bool depends_on_batch(const MaskNode& node) {
  const bool self =
      std::visit(Overloaded{[](const nodes::Padding& of) { return of.lengths.size() > 1; },
                            [](const nodes::Documents& of) { return of.bounds.size() > 1; },
                            [](const nodes::Custom& of) { return of.options.per_batch; },
                            [](const nodes::Dense& of) { return of.visible.size(0) > 1; },
                            [](const auto&) { return false; }},
                 node.value);
  return self || any_part(node, depends_on_batch);
}

bool depends_on_head(const MaskNode& node) {
  const bool self =
      std::visit(Overloaded{[](const nodes::RandomTopK&) { return true; },
                            [](const nodes::RandomBlocks&) { return true; },
                            [](const nodes::PerHead& of) { return of.heads.size() > 1; },
                            [](const nodes::Custom& of) { return of.options.per_head; },
                            [](const nodes::Dense& of) { return of.visible.size(1) > 1; },
                            [](const auto&) { return false; }},
                 node.value);
  return self || any_part(node, depends_on_head);
}

bool has_predicate(const MaskNode& node) {
  return std::holds_alternative<nodes::Custom>(node.value) || any_part(node, has_predicate);
}

Among among_of(const nodes::And& conjunction, size_t part, const Among& outer) {
  Among among = outer;
  for (size_t i = 0; i < conjunction.parts.size(); ++i) {
    const MaskNode& node = conjunction.parts[i].node();
    if (i != part && !node.random) among.push_back(&node);
  }
  return among;
}

}  // namespace torchlore::detail
