#pragma once

#include <cstdint>
#include <ostream>
#include <vector>

#include "torchlore/core/bytes.hpp"

namespace torchlore {

/// What one block of a sequence costs, measured on one forward pass.
struct BlockCost {
  Bytes input = Bytes(0);    ///< of the block's input
  bool input_saved = false;  ///< whether autograd keeps the input: the block, or the one before it
  Bytes saved = Bytes(0);    ///< of what else autograd keeps of the block; parameters left out
  double seconds = 0;        ///< of the forward pass
};

/// Which blocks of a sequence are checkpointed together, and which are left alone.
///
/// The model: a block that is left alone keeps `saved`, and its input if `input_saved`, until backward
/// has passed it. A checkpointed segment keeps the input of its first block; when backward comes to
/// it, what comes after it is gone, what comes before it is still there, and all that its blocks keep
/// comes on top. The peak is the largest sum, at the end of the forward pass or at a segment; the
/// price is the forward time of all checkpointed blocks. Gradients and what an op needs while it runs
/// are not part of it.
class CheckpointPlan {
 public:
  /// Blocks [begin, end).
  struct Segment {
    int64_t begin = 0;          ///< its first block
    int64_t end = 0;            ///< the block after its last
    bool checkpointed = false;  ///< false: it keeps all that autograd saves
  };

  /// No plan yet; `checkpoint_sequential` makes one on its first call.
  CheckpointPlan() = default;
  /// The plan with the least recomputation whose peak stays within the budget.
  /// @throws c10::ValueError if no plan does, naming the smallest budget that one can do with.
  /// @note Dynamic programming over the pairs (bytes kept, time) that no other pair beats. Exact up
  ///       to 4,096 such pairs; beyond, close pairs are merged, which costs optimality only.
  static CheckpointPlan for_budget(std::vector<BlockCost> blocks, Bytes budget);
  /// So many segments of (nearly) equal numbers of blocks, all checkpointed but the last, whose
  /// recomputation would follow at once. `segments` is cut to the number of blocks.
  /// @throws c10::ValueError unless `segments` is 1 or more.
  static CheckpointPlan equal(int64_t blocks, int64_t segments);
  /// A plan of the user's own.
  /// @throws c10::ValueError unless the segments cover the blocks from 0 on, in order, without gaps.
  CheckpointPlan(std::vector<BlockCost> blocks, std::vector<Segment> segments);

  /// Whether there is no plan yet.
  bool empty() const { return segments_.empty(); }
  /// The segments, in order.
  const std::vector<Segment>& segments() const { return segments_; }
  /// What the blocks cost; all zero for `equal`.
  const std::vector<BlockCost>& blocks() const { return blocks_; }
  /// The budget it was made for; 0 if for none.
  Bytes budget() const { return budget_; }
  /// The peak by the model.
  Bytes peak() const;
  /// The forward time of all checkpointed blocks.
  double recomputed_seconds() const;
  /// The smallest budget that any plan for these blocks can do with.
  static Bytes smallest_budget(const std::vector<BlockCost>& blocks);

 private:
  std::vector<BlockCost> blocks_;
  std::vector<Segment> segments_;
  Bytes budget_;
};

/// One line for the plan and one for each segment.
std::ostream& operator<<(std::ostream& out, const CheckpointPlan& plan);

}  // namespace torchlore
