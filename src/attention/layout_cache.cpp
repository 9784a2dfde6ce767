#include "layout_cache.hpp"

#include <algorithm>

namespace torchlore::detail {

std::shared_ptr<const LayoutPatterns> LayoutCache::find(const Key& key) const {
  const std::lock_guard lock(mutex_);
  const auto found = std::find_if(entries_.begin(), entries_.end(),
                                  [&](const Entry& entry) { return entry.key == key; });
  if (found == entries_.end()) return nullptr;
  entries_.splice(entries_.begin(), entries_, found);
  return found->patterns;
}

void LayoutCache::keep(const Key& key, std::shared_ptr<const LayoutPatterns> patterns) {
  const std::lock_guard lock(mutex_);
  entries_.remove_if([&](const Entry& entry) { return entry.key == key; });
  entries_.push_front({key, std::move(patterns)});
  if (entries_.size() > kKept) entries_.pop_back();
}

}  // namespace torchlore::detail
