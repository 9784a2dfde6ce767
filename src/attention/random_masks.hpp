#pragma once

#include <map>
#include <memory>
#include <vector>

#include "bound_mask.hpp"

/// The bound masks of the random kinds. They keep what they chose for the rows asked for last.
namespace torchlore::detail {

/// What the random kinds have in common.
template <typename Random>
class RandomMask : public BoundMask {
 public:
  /// @param of     must outlive this.
  /// @param among  what it chooses among.
  /// @param always of these, what it always keeps; may be null.
  RandomMask(const Random& of, std::unique_ptr<BoundMask> among, std::unique_ptr<BoundMask> always,
             const Where& where)
      : of_(of),
        among_(std::move(among)),
        always_(std::move(always)),
        where_(where),
        // Where no diagonal is kept no position matters, and no alignment is asked for.
        offset_(of.keep_diagonal ? query_offset(of.align, where.queries, where.keys, of) : 0) {}

 protected:
  const Random& of_;
  std::unique_ptr<BoundMask> among_;
  std::unique_ptr<BoundMask> always_;
  Where where_;
  int64_t offset_;
};

/// Keys at random for each query.
class RandomTopKMask final : public RandomMask<nodes::RandomTopK> {
 public:
  using RandomMask::RandomMask;

  Ranges any(Span queries, Span keys) override;
  Ranges every(Span queries, Span keys) override;
  void words(Span queries, Span keys, uint64_t* words) override;

 private:
  void prepare(Span queries);

  Span prepared_;
  std::vector<std::vector<int64_t>> chosen_;  // by query of prepared_
};

/// Blocks of keys at random for each block of queries.
class RandomBlocksMask final : public RandomMask<nodes::RandomBlocks> {
 public:
  using RandomMask::RandomMask;

  Ranges any(Span queries, Span keys) override;
  Ranges every(Span queries, Span keys) override;
  void words(Span queries, Span keys, uint64_t* words) override;

 private:
  /// The keys of the blocks chosen for a block of queries.
  const Ranges& chosen(int64_t block);
  /// The blocks with a pair that is visible by the mask.
  Ranges visible_blocks(BoundMask& mask, Span queries) const;
  /// The blocks that hold the queries.
  Span blocks_of(Span queries) const {
    return {queries.begin / of_.block, (queries.end - 1) / of_.block + 1};
  }

  std::map<int64_t, Ranges> chosen_;  // by block of queries
};

}  // namespace torchlore::detail
