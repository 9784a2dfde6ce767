#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>

namespace torchlore::detail {

struct LayoutPatterns;

/// The last few layouts of one mask. A training loop asks for the same one or two at each step;
/// generation asks for a new length at each token, and must not keep them all.
///
/// It keeps the patterns without their mask, which owns the cache: no cycle.
class LayoutCache {
 public:
  struct Key {
    int64_t queries, keys, block_size, batch, heads;
    bool operator==(const Key&) const = default;
  };

  /// What was kept under the key, or null.
  std::shared_ptr<const LayoutPatterns> find(const Key& key) const;
  /// Keeps the patterns, and drops the ones that were not asked for the longest.
  void keep(const Key& key, std::shared_ptr<const LayoutPatterns> patterns);

 private:
  static constexpr size_t kKept = 4;
  struct Entry {
    Key key;
    std::shared_ptr<const LayoutPatterns> patterns;
  };
  mutable std::mutex mutex_;
  mutable std::list<Entry> entries_;  // the last one asked for comes first
};

}  // namespace torchlore::detail
