#include "torchlore/attention/sparse_attention_scope.hpp"

#include <c10/util/Exception.h>

#include <utility>

#include "scope_handler.hpp"
#include "torchlore/intercept/op_mode.hpp"

namespace torchlore {
namespace {

SparseAttentionScopeOptions checked(SparseAttentionScopeOptions options) {
  TORCH_CHECK_VALUE(
      options.heads >= 0,
      "SparseAttentionScopeOptions::heads must be the number of heads, or 0 if it is not "
      "said, but is ",
      options.heads);
  TORCH_CHECK_VALUE(
      options.block_size == 32 || options.block_size == 64 || options.block_size == 128,
      "SparseAttentionScopeOptions::block_size must be 32, 64 or 128, but is ", options.block_size);
  return options;
}

}  // namespace

struct SparseAttentionScope::State {
  explicit State(std::shared_ptr<attention::ScopeHandler> of) : handler(std::move(of)) {}
  std::shared_ptr<attention::ScopeHandler> handler;
  OpMode mode{handler};
};

SparseAttentionScope::SparseAttentionScope(MaskSpec spec, SparseAttentionScopeOptions options)
    : state_(std::make_unique<State>(std::make_shared<attention::ScopeHandler>(
          std::move(spec), checked(std::move(options))))) {}

SparseAttentionScope::~SparseAttentionScope() = default;

std::vector<SeenAttention> SparseAttentionScope::seen() const { return state_->handler->seen(); }

std::string to_string(AttentionPath path) {
  return path == AttentionPath::sparse ? "sparse" : "left alone";
}

std::ostream& operator<<(std::ostream& out, const SeenAttention& seen) {
  out << seen.count << " x " << seen.ops << " [" << seen.shape.batch << ", " << seen.shape.heads
      << ", " << seen.shape.queries << ", " << seen.shape.keys << "]: " << to_string(seen.path);
  if (seen.path == AttentionPath::sparse) return out << ", density " << seen.density;
  return out << ", because " << seen.reason;
}

}  // namespace torchlore
