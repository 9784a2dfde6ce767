#include "bound_mask.hpp"

#include <array>

#include "leaf_masks.hpp"
#include "random_masks.hpp"

namespace torchlore::detail {
namespace {

using Parts = std::vector<std::unique_ptr<BoundMask>>;
using Words = std::array<uint64_t, 64>;

/// The first part's words, joined with each of the others'. @param join changes a word by another one.
template <typename F>
void join_words(const Parts& parts, Span queries, Span keys, uint64_t* words, const F& join) {
  parts.front()->words(queries, keys, words);
  Words part;
  for (size_t i = 1; i < parts.size(); ++i) {
    parts[i]->words(queries, keys, part.data());
    for (int64_t row = 0; row < queries.size(); ++row) {
      join(words[row], part[static_cast<size_t>(row)]);
    }
  }
}

class AndMask final : public BoundMask {
 public:
  explicit AndMask(Parts parts) : parts_(std::move(parts)) {}

  Ranges any(Span queries, Span keys) override { return all_of(&BoundMask::any, queries, keys); }
  Ranges every(Span queries, Span keys) override {
    return all_of(&BoundMask::every, queries, keys);
  }
  void words(Span queries, Span keys, uint64_t* words) override {
    join_words(parts_, queries, keys, words, [](uint64_t& word, uint64_t by) { word &= by; });
  }

 private:
  /// Each part is asked only about the keys that the parts before it left.
  Ranges all_of(Ranges (BoundMask::*bound)(Span, Span), Span queries, Span keys) {
    Ranges left = {keys};
    for (const auto& part : parts_) {
      if (left.empty()) break;
      const Span hull = {left.front().begin, left.back().end};
      left = intersection(left, ((*part).*bound)(queries, hull));
    }
    return left;
  }

  Parts parts_;
};

class OrMask final : public BoundMask {
 public:
  explicit OrMask(Parts parts) : parts_(std::move(parts)) {}

  Ranges any(Span queries, Span keys) override { return any_of(&BoundMask::any, queries, keys); }
  Ranges every(Span queries, Span keys) override {
    return any_of(&BoundMask::every, queries, keys);
  }
  void words(Span queries, Span keys, uint64_t* words) override {
    join_words(parts_, queries, keys, words, [](uint64_t& word, uint64_t by) { word |= by; });
  }

 private:
  Ranges any_of(Ranges (BoundMask::*bound)(Span, Span), Span queries, Span keys) {
    Ranges either;
    for (const auto& part : parts_) either = united(either, ((*part).*bound)(queries, keys));
    return either;
  }

  Parts parts_;
};

class NotMask final : public BoundMask {
 public:
  explicit NotMask(std::unique_ptr<BoundMask> part) : part_(std::move(part)) {}

  Ranges any(Span queries, Span keys) override {
    return complement(part_->every(queries, keys), keys);
  }
  Ranges every(Span queries, Span keys) override {
    return complement(part_->any(queries, keys), keys);
  }
  void words(Span queries, Span keys, uint64_t* words) override {
    part_->words(queries, keys, words);
    const uint64_t all = shared_bits(keys, keys);
    for (int64_t row = 0; row < queries.size(); ++row) words[row] = ~words[row] & all;
  }

 private:
  std::unique_ptr<BoundMask> part_;
};

/// Whether a part is asked pair by pair: it comes after those that can say much at once.
bool is_pairwise(const MaskNode& node) {
  if (std::holds_alternative<nodes::Custom>(node.value)) return true;
  if (std::holds_alternative<nodes::Dense>(node.value)) return true;
  const auto parts = parts_of(node);
  return std::any_of(parts.begin(), parts.end(),
                     [](const MaskSpec& part) { return is_pairwise(part.node()); });
}

/// All of the nodes at once. @param bind makes the part of node i.
template <typename F>
std::unique_ptr<BoundMask> and_of(const Among& nodes, const F& bind) {
  Parts parts;
  for (const bool pairwise : {false, true}) {
    for (size_t i = 0; i < nodes.size(); ++i) {
      if (is_pairwise(*nodes[i]) == pairwise) parts.push_back(bind(i));
    }
  }
  return std::make_unique<AndMask>(std::move(parts));
}

class Binder {
 public:
  explicit Binder(const Where& where) : where_(where) {}

  std::unique_ptr<BoundMask> bind(const MaskNode& node, const Among& among) const {
    return std::visit([&](const auto& of) { return make(of, among); }, node.value);
  }

 private:
  using Bound = std::unique_ptr<BoundMask>;

  int64_t offset(const auto& of) const {
    return query_offset(of.align, where_.queries, where_.keys, of);
  }
  /// No distance is larger than this.
  int64_t farthest() const { return where_.queries + where_.keys; }

  Bound make(const nodes::Everything&, const Among&) const {
    return std::make_unique<FirstKeysMask>(where_.keys);
  }
  Bound make(const nodes::Sinks& of, const Among&) const {
    return std::make_unique<FirstKeysMask>(of.count);
  }
  Bound make(const nodes::Padding& of, const Among&) const {
    return std::make_unique<FirstKeysMask>(entry_of(of.lengths, where_.batch));
  }
  Bound make(const nodes::Causal& of, const Among&) const {
    return std::make_unique<CausalMask>(offset(of));
  }
  Bound make(const nodes::Window& of, const Among&) const {
    return std::make_unique<WindowMask>(offset(of), std::min(of.size, farthest() + 1));
  }
  Bound make(const nodes::Documents& of, const Among&) const {
    return std::make_unique<DocumentsMask>(offset(of), entry_of(of.bounds, where_.batch));
  }
  Bound make(const nodes::Dilated& of, const Among&) const {
    const int64_t reach = std::min(of.size - 1, farthest() / of.dilation + 1);
    return std::make_unique<DilatedMask>(offset(of), reach, of.dilation);
  }
  Bound make(const nodes::Strided& of, const Among&) const {
    return std::make_unique<StridedMask>(of.stride, of.first, 1);
  }
  Bound make(const nodes::StridedRuns& of, const Among&) const {
    return std::make_unique<StridedMask>(of.stride, of.first, of.run);
  }
  Bound make(const nodes::LogSparse& of, const Among&) const {
    return std::make_unique<LogSparseMask>(offset(of));
  }
  Bound make(const nodes::GlobalTokens& of, const Among&) const {
    return std::make_unique<GlobalMask>(offset(of), of.positions);
  }
  Bound make(const nodes::Custom& of, const Among&) const {
    return std::make_unique<CustomMask>(of, where_);
  }
  Bound make(const nodes::Dense& of, const Among&) const {
    return std::make_unique<DenseMask>(of, where_);
  }
  template <typename Mask>
  Bound make_random(const auto& of, const Among& among) const {
    Bound always = of.always.empty() ? nullptr : bind_all(kept_of(of, among), where_);
    return std::make_unique<Mask>(of, bind_all(among, where_), std::move(always), where_);
  }
  Bound make(const nodes::RandomTopK& of, const Among& among) const {
    return make_random<RandomTopKMask>(of, among);
  }
  Bound make(const nodes::RandomBlocks& of, const Among& among) const {
    return make_random<RandomBlocksMask>(of, among);
  }
  Bound make(const nodes::PerHead& of, const Among& among) const {
    return bind(entry_of(of.heads, where_.head).node(), among);
  }
  Bound make(const nodes::Not& of, const Among& among) const {
    return std::make_unique<NotMask>(bind(of.part.node(), among));
  }
  Bound make(const nodes::Or& of, const Among& among) const {
    Parts parts;
    for (const auto& part : of.parts) parts.push_back(bind(part.node(), among));
    return std::make_unique<OrMask>(std::move(parts));
  }
  Bound make(const nodes::And& of, const Among& among) const {
    Among nodes;
    for (const auto& part : of.parts) nodes.push_back(&part.node());
    return and_of(nodes, [&](size_t i) { return bind(*nodes[i], among_of(of, i, among)); });
  }

  const Where& where_;
};

}  // namespace

std::unique_ptr<BoundMask> bind_mask(const MaskNode& node, const Where& where) {
  return Binder(where).bind(node, {});
}

std::unique_ptr<BoundMask> bind_all(const Among& nodes, const Where& where) {
  if (nodes.empty()) return std::make_unique<FirstKeysMask>(where.keys);
  if (nodes.size() == 1) return bind_mask(*nodes.front(), where);
  return and_of(nodes, [&](size_t i) { return bind_mask(*nodes[i], where); });
}

}  // namespace torchlore::detail
