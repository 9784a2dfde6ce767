#include <algorithm>
#include <bit>
#include <cstdlib>

#include "mask_node.hpp"
#include "random_choice.hpp"

/// The definition of each kind of mask, pair by pair.
namespace torchlore {
namespace {

using detail::Among;
using detail::entry_of;

struct Pair {
  int64_t query;
  int64_t key;
};

bool sees(const MaskNode& node, Pair pair, const Where& where, const Among& among);

bool all_see(const Among& among, Pair pair, const Where& where) {
  return std::all_of(among.begin(), among.end(),
                     [&](const MaskNode* node) { return sees(*node, pair, where, {}); });
}

/// What a random mask does not choose a diagonal for needs no alignment.
template <typename Random>
int64_t random_offset(const Random& of, const Where& where, const nodes::Value& value) {
  return of.keep_diagonal ? detail::query_offset(of.align, where.queries, where.keys, value) : 0;
}

/// The keys that a query sees by all of the masks.
detail::Ranges visible_keys(const Among& among, int64_t query, const Where& where) {
  detail::Ranges visible;
  for (int64_t key = 0; key < where.keys; ++key) {
    if (all_see(among, {query, key}, where)) append(visible, {key, key + 1});
  }
  return visible;
}

bool sees(const nodes::RandomTopK& of, Pair pair, const Where& where, const Among& among) {
  const auto visible = visible_keys(among, pair.query, where);
  const auto always = of.always.empty()
                          ? detail::Ranges()
                          : visible_keys(detail::kept_of(of, among), pair.query, where);
  const int64_t own = pair.query + random_offset(of, where, of);
  const auto chosen = chosen_keys(of, visible, always, own, pair.query, where.head);
  return std::binary_search(chosen.begin(), chosen.end(), pair.key);
}

/// Whether any query of a block sees any key of another.
bool blocks_see(const Among& among, detail::Span queries, detail::Span keys, const Where& where) {
  for (int64_t query = queries.begin; query < queries.end; ++query) {
    for (int64_t key = keys.begin; key < keys.end; ++key) {
      if (all_see(among, {query, key}, where)) return true;
    }
  }
  return false;
}

/// The blocks of keys of which a block of queries sees some by all of the masks.
detail::Ranges visible_blocks(const Among& among, detail::Span queries, int64_t block,
                              const Where& where) {
  detail::Ranges visible;
  for (int64_t i = 0; i * block < where.keys; ++i) {
    const detail::Span keys = {i * block, std::min((i + 1) * block, where.keys)};
    if (blocks_see(among, queries, keys, where)) append(visible, {i, i + 1});
  }
  return visible;
}

bool sees(const nodes::RandomBlocks& of, Pair pair, const Where& where, const Among& among) {
  const int64_t block = pair.query / of.block;
  const detail::Span queries = {block * of.block, std::min((block + 1) * of.block, where.queries)};
  const auto visible = visible_blocks(among, queries, of.block, where);
  const auto always = of.always.empty()
                          ? detail::Ranges()
                          : visible_blocks(detail::kept_of(of, among), queries, of.block, where);
  const int64_t offset = random_offset(of, where, of);
  const auto own = detail::own_blocks(queries, offset, where.keys, of.block);
  const auto chosen = chosen_blocks(of, visible, always, own, block, where.head);
  return std::binary_search(chosen.begin(), chosen.end(), pair.key / of.block);
}

bool sees(const nodes::And& of, Pair pair, const Where& where, const Among& among) {
  // The random parts cost the most: last.
  for (const bool random : {false, true}) {
    for (size_t i = 0; i < of.parts.size(); ++i) {
      const MaskNode& part = of.parts[i].node();
      if (part.random != random) continue;
      if (!sees(part, pair, where, random ? detail::among_of(of, i, among) : Among())) return false;
    }
  }
  return true;
}

/// Whether a query sees a key that is `distance` before its own position.
bool sees_at(const nodes::Causal&, int64_t distance) { return distance >= 0; }
bool sees_at(const nodes::Window& of, int64_t distance) { return std::abs(distance) < of.size; }
bool sees_at(const nodes::Dilated& of, int64_t distance) {
  return distance % of.dilation == 0 && std::abs(distance) / of.dilation < of.size;
}
bool sees_at(const nodes::LogSparse&, int64_t distance) {
  return distance == 0 || (distance > 0 && std::has_single_bit(static_cast<uint64_t>(distance)));
}

/// Which document holds the position; `documents` or -1 for none.
int64_t document_at(const std::vector<int64_t>& bounds, int64_t position) {
  if (position < 0 || position >= bounds.back()) return -1;
  return std::upper_bound(bounds.begin(), bounds.end(), position) - bounds.begin();
}

bool holds(const std::vector<int64_t>& ascending, int64_t number) {
  return std::binary_search(ascending.begin(), ascending.end(), number);
}

/// `position`: of the query, among the keys.
bool sees_from(const nodes::GlobalTokens& of, int64_t position, int64_t key, const Where&) {
  return holds(of.positions, key) || holds(of.positions, position);
}
bool sees_from(const nodes::Documents& of, int64_t position, int64_t key, const Where& where) {
  const auto& bounds = entry_of(of.bounds, where.batch);
  const int64_t document = document_at(bounds, position);
  return document >= 0 && document == document_at(bounds, key);
}
template <typename Kind>
requires requires(const Kind& of) { sees_at(of, 0); }
bool sees_from(const Kind& of, int64_t position, int64_t key, const Where&) {
  return sees_at(of, position - key);
}

bool sees_dense(const nodes::Dense& of, Pair pair, const Where& where) {
  const auto shape = of.visible.sizes();
  TORCH_CHECK_VALUE(shape[2] == where.queries && shape[3] == where.keys, "dense() holds a mask of ",
                    shape[2], " queries and ", shape[3], " keys, but is asked for ", where.queries,
                    " and ", where.keys);
  TORCH_CHECK_VALUE(
      (shape[0] == 1 || where.batch < shape[0]) && (shape[1] == 1 || where.head < shape[1]),
      "dense() is for ", shape[0], " batch entries and ", shape[1],
      " heads, but is asked for batch entry ", where.batch, " and head ", where.head);
  const int64_t batch = shape[0] == 1 ? 0 : where.batch;
  const int64_t head = shape[1] == 1 ? 0 : where.head;
  const int64_t row = (batch * shape[1] + head) * shape[2] + pair.query;
  return of.visible.const_data_ptr<bool>()[row * shape[3] + pair.key];
}

bool sees(const MaskNode& node, Pair pair, const Where& where, const Among& among) {
  return std::visit(
      detail::Overloaded{
          [&](const nodes::Everything&) { return true; },
          [&](const nodes::Sinks& of) { return pair.key < of.count; },
          [&](const nodes::Padding& of) { return pair.key < entry_of(of.lengths, where.batch); },
          [&](const nodes::Strided& of) { return pair.key % of.stride == of.first; },
          [&](const nodes::StridedRuns& of) {
            const int64_t place = pair.key % of.stride;
            return of.first <= place && place < of.first + of.run;
          },
          [&](const nodes::Custom& of) { return of.visible(pair.query, pair.key, where); },
          [&](const nodes::Dense& of) { return sees_dense(of, pair, where); },
          [&](const nodes::PerHead& of) {
            return sees(entry_of(of.heads, where.head).node(), pair, where, among);
          },
          [&](const nodes::Not& of) { return !sees(of.part.node(), pair, where, among); },
          [&](const nodes::Or& of) {
            return std::any_of(of.parts.begin(), of.parts.end(), [&](const MaskSpec& part) {
              return sees(part.node(), pair, where, among);
            });
          },
          [&]<typename Kind>(const Kind& of) {
            if constexpr (requires { sees(of, pair, where, among); }) {
              return sees(of, pair, where, among);
            } else {
              const int64_t offset =
                  detail::query_offset(of.align, where.queries, where.keys, node.value);
              return sees_from(of, pair.query + offset, pair.key, where);
            }
          }},
      node.value);
}

}  // namespace

bool MaskSpec::visible(int64_t query, int64_t key, const Where& where) const {
  TORCH_CHECK_VALUE(query >= 0 && query < where.queries, "there is no query ", query, " among ",
                    where.queries);
  TORCH_CHECK_VALUE(key >= 0 && key < where.keys, "there is no key ", key, " among ", where.keys);
  TORCH_CHECK_VALUE(where.batch >= 0 && where.head >= 0, "there is no batch entry ", where.batch,
                    " or no head ", where.head);
  return sees(node(), {query, key}, where, {});
}

}  // namespace torchlore
