#pragma once

#include <array>
#include <vector>

#include "bound_mask.hpp"

/// The bound masks of the leaves, by what their rows have in common.
namespace torchlore::detail {

/// Each query sees one range of keys, of which neither end ever moves back from a query to the next.
class BandMask : public BoundMask {
 public:
  Ranges any(Span queries, Span keys) override {
    Ranges ranges;
    append(ranges, overlap({row(queries.begin).begin, row(queries.end - 1).end}, keys));
    return ranges;
  }
  Ranges every(Span queries, Span keys) override {
    Ranges ranges;
    append(ranges, overlap({row(queries.end - 1).begin, row(queries.begin).end}, keys));
    return ranges;
  }
  void words(Span queries, Span keys, uint64_t* words) override {
    for (int64_t query = queries.begin; query < queries.end; ++query) {
      *words++ = shared_bits(row(query), keys);
    }
  }

 private:
  /// What the query sees; may reach past the keys.
  virtual Span row(int64_t query) const = 0;
};

/// Keys [0, count), for each query.
class FirstKeysMask final : public BandMask {
 public:
  explicit FirstKeysMask(int64_t count) : count_(count) {}

 private:
  Span row(int64_t) const override { return {0, count_}; }
  int64_t count_;
};

/// Keys up to the query's own position.
class CausalMask final : public BandMask {
 public:
  explicit CausalMask(int64_t offset) : offset_(offset) {}

 private:
  Span row(int64_t query) const override { return {0, query + offset_ + 1}; }
  int64_t offset_;
};

/// Keys less than `size` away from the query's own position.
class WindowMask final : public BandMask {
 public:
  WindowMask(int64_t offset, int64_t size) : offset_(offset), size_(size) {}

 private:
  Span row(int64_t query) const override {
    return {query + offset_ - size_ + 1, query + offset_ + size_};
  }
  int64_t offset_, size_;
};

/// Keys of the same document.
class DocumentsMask final : public BandMask {
 public:
  /// @param bounds see nodes::Documents; must outlive this.
  DocumentsMask(int64_t offset, const std::vector<int64_t>& bounds)
      : offset_(offset), bounds_(bounds) {}

 private:
  Span row(int64_t query) const override;
  int64_t offset_;
  const std::vector<int64_t>& bounds_;
};

/// Keys at multiples of a distance from the query's own position.
class DilatedMask final : public BoundMask {
 public:
  /// @param reach how many multiples, on either side.
  DilatedMask(int64_t offset, int64_t reach, int64_t dilation)
      : offset_(offset), reach_(reach), dilation_(dilation) {}

  Ranges any(Span queries, Span keys) override;
  Ranges every(Span queries, Span keys) override;
  void words(Span queries, Span keys, uint64_t* words) override;

 private:
  /// The multiples at which a position can meet a key, for any of the positions.
  Span multiples(Span positions, Span keys) const;
  int64_t offset_, reach_, dilation_;
};

/// The same runs of keys for all queries, at equal distances.
class StridedMask final : public BoundMask {
 public:
  StridedMask(int64_t stride, int64_t first, int64_t run)
      : stride_(stride), first_(first), run_(run) {}

  Ranges any(Span queries, Span keys) override;
  Ranges every(Span queries, Span keys) override;
  void words(Span queries, Span keys, uint64_t* words) override;

 private:
  /// The runs, cut at the ends.
  Ranges each(Span keys) const;
  /// Whether the runs lie so close that each block of keys has one.
  bool close() const { return stride_ < kClose; }
  static constexpr int64_t kClose = 32;
  int64_t stride_, first_, run_;
};

/// The own key and those at powers of two before it.
class LogSparseMask final : public BoundMask {
 public:
  explicit LogSparseMask(int64_t offset) : offset_(offset) {}

  Ranges any(Span queries, Span keys) override;
  Ranges every(Span queries, Span keys) override;
  void words(Span queries, Span keys, uint64_t* words) override;

 private:
  int64_t offset_;
};

/// Some keys for all queries, and all keys for some queries.
class GlobalMask final : public BoundMask {
 public:
  /// @param positions ascending; must outlive this.
  GlobalMask(int64_t offset, const std::vector<int64_t>& positions)
      : offset_(offset), positions_(positions) {}

  Ranges any(Span queries, Span keys) override;
  Ranges every(Span queries, Span keys) override;
  void words(Span queries, Span keys, uint64_t* words) override;

 private:
  Ranges columns(Span keys) const;
  int64_t count_in(Span positions) const;
  int64_t offset_;
  const std::vector<int64_t>& positions_;
};

/// What can only be asked pair by pair.
class PairwiseMask : public BoundMask {
 public:
  Ranges any(Span queries, Span keys) override;
  Ranges every(Span queries, Span keys) override;
};

/// A user's predicate.
class CustomMask final : public PairwiseMask {
 public:
  CustomMask(const nodes::Custom& of, const Where& where) : of_(of), where_(where) {}
  void words(Span queries, Span keys, uint64_t* words) override;

 private:
  const nodes::Custom& of_;
  Where where_;
};

/// A user's tensor.
class DenseMask final : public PairwiseMask {
 public:
  DenseMask(const nodes::Dense& of, const Where& where);
  void words(Span queries, Span keys, uint64_t* words) override;

 private:
  const bool* data_;
  int64_t keys_;
};

}  // namespace torchlore::detail
