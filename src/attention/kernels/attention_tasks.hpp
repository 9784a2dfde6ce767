#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "../../core/buffer_pool.hpp"
#include "attention_kernels.hpp"
#include "block_kernels.hpp"

/// What the two directions of attention share: heads as the loops take them, and the order of work.
namespace torchlore::kernels {

/// Bytes of a scalar: what sums, scores and log-sum-exp are held in.
int64_t scalar_bytes(Element element);

/// `data` moved on by a number of scalars; nullptr stays.
void* scalars_at(const void* data, int64_t count, Element element);

/// The rows of one head.
Matrix rows_of(const Rows& rows, Element element, int64_t batch, int64_t head);

const TileLayout& layout_of(const AttentionProblem& problem, int64_t batch, int64_t head);

/// The inputs of one (batch entry, query head).
AttentionHead head_of(const AttentionProblem& problem, int64_t batch, int64_t head);

const TileKernels& tile_kernels(const AttentionProblem& problem, const BlockKernels* kernels);

/// One query tile or key tile of one (batch entry, head or group of heads).
struct TileTask {
  int64_t unit = 0;  ///< batch · heads + head
  int64_t tile = 0;
};

/// The tiles of all units, so that no thread is left with a long one at the end: units with much work
/// first, and within a unit, whose tiles share K and V in the caches, tiles with much work first.
/// @param starts of each unit's tiles, as row_start of a layout; units may share one
std::vector<TileTask> ordered_by_work(const std::vector<const std::vector<int32_t>*>& starts);

/// Runs body(task, scratch) for all tasks in this order, each on the next thread that is free.
/// @param bytes of each thread's scratch
void run_tasks(int64_t count, detail::BufferPool& pool, int64_t bytes,
               const std::function<void(int64_t task, void* scratch)>& body);

}  // namespace torchlore::kernels
