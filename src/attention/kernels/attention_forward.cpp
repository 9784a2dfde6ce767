#include <atomic>

#include "attention_tasks.hpp"

namespace torchlore::kernels {

void attention_forward(const AttentionProblem& problem, const Rows& out, void* log_sum_exp,
                       detail::BufferPool& scratch, AttentionStatistics* statistics,
                       const BlockKernels* kernels) {
  const int64_t units = problem.batch * problem.heads;
  if (units == 0 || problem.queries == 0) return;
  const auto& loops = tile_kernels(problem, kernels);
  std::vector<const std::vector<int32_t>*> starts;
  for (int64_t u = 0; u < units; ++u) starts.push_back(&problem.layouts[u]->row_start);
  const auto tasks = ordered_by_work(starts);
  std::atomic<int64_t> executed{0};
  run_tasks(static_cast<int64_t>(tasks.size()), scratch, loops.forward_scratch,
            [&](int64_t t, void* room) {
              const auto [unit, tile] = tasks[static_cast<size_t>(t)];
              const int64_t b = unit / problem.heads, h = unit % problem.heads;
              AttentionHead head = head_of(problem, b, h);
              head.out = rows_of(out, problem.element, b, h);
              head.log_sum_exp = scalars_at(log_sum_exp, unit * problem.queries, problem.element);
              executed += loops.forward(head, tile, room);
            });
  if (statistics != nullptr) statistics->executed_tiles += executed;
}

}  // namespace torchlore::kernels
