#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "attention_tasks.hpp"

namespace torchlore::kernels {
namespace {

/// One backward call, and what its parts share.
class Backward {
 public:
  Backward(const AttentionProblem& problem, const AttentionGradients& gradients,
           detail::BufferPool& pool, const TileKernels& loops)
      : problem_(problem),
        gradients_(gradients),
        pool_(pool),
        loops_(loops),
        group_(problem.heads / problem.key_heads),
        units_(problem.batch * problem.key_heads) {}

  void run(Passes passes) {
    const int64_t threads = at::get_num_threads();
    const bool scarce = threads > kMaxParts * units_;
    if (passes == Passes::two || (passes == Passes::automatic && scarce)) {
      rows_then_columns();
    } else {
      one_pass(std::clamp<int64_t>((threads + units_ - 1) / units_, 1, kMaxParts));
    }
  }

  int64_t executed() const { return executed_; }

 private:
  static constexpr int64_t kMaxParts = 4;

  /// Scalars of `count` parts of dK or dV of one key head.
  struct KeySums {
    at::Tensor memory;
    int64_t part = 0;  ///< scalars of one part

    Matrix of(int64_t index, int64_t dim, Element element) const {
      return {scalars_at(memory.const_data_ptr(), index * part, element), padded(dim)};
    }
  };

  AttentionHead head(int64_t b, int64_t h) const {
    const Element element = problem_.element;
    const int64_t unit = b * problem_.heads + h;
    const int64_t key_head = h / group_;
    AttentionHead result = head_of(problem_, b, h);
    result.out = rows_of(gradients_.out, element, b, h);
    result.grad_out = rows_of(gradients_.grad_out, element, b, h);
    result.log_sum_exp = scalars_at(gradients_.log_sum_exp, unit * problem_.queries, element);
    result.grad_log_sum_exp =
        scalars_at(gradients_.grad_log_sum_exp, unit * problem_.queries, element);
    result.grad_q = rows_of(gradients_.grad_q, element, b, h);
    result.grad_k = rows_of(gradients_.grad_k, element, b, key_head);
    result.grad_v = rows_of(gradients_.grad_v, element, b, key_head);
    return result;
  }

  // ---- one pass ----

  void one_pass(int64_t parts) {
    if (parts == 1) {
      whole_units();
    } else {
      units_in_parts(parts);
    }
  }

  /// Each key head is one task, which adds up dK and dV where they are wanted, or in its scratch.
  void whole_units() {
    const int64_t room = padded_bytes(loops_.backward_scratch);
    const int64_t k_sums = sum_bytes(problem_.head_dim), v_sums = sum_bytes(problem_.value_dim);
    run_tasks(units_, pool_, room + k_sums + v_sums, [&](int64_t unit, void* scratch) {
      char* sums = static_cast<char*>(scratch) + room;
      const AttentionHead first =
          head(unit / problem_.key_heads, unit % problem_.key_heads * group_);
      const Matrix k = sums_for(problem_.head_dim, first.grad_k, sums);
      const Matrix v = sums_for(problem_.value_dim, first.grad_v, sums + k_sums);
      rows_of_unit(unit, 0, query_tiles(), k, v, scratch);
      round_unless_in_place(k, problem_.head_dim, first.grad_k);
      round_unless_in_place(v, problem_.value_dim, first.grad_v);
    });
  }

  Matrix sums_for(int64_t dim, const Matrix& wanted, char* scratch) const {
    return loops_.sums_in_place(dim) ? wanted : Matrix{scratch, padded(dim)};
  }

  void round_unless_in_place(const Matrix& sums, int64_t dim, const Matrix& to) const {
    if (sums.data != to.data) loops_.round_sum(sums, 1, 0, problem_.keys, dim, to);
  }

  /// dQ of some query tiles of all heads that share a key head, and their part of its dK and dV.
  void rows_of_unit(int64_t unit, int64_t first, int64_t last, const Matrix& k, const Matrix& v,
                    void* scratch) {
    clear(k, problem_.head_dim);
    clear(v, problem_.value_dim);
    for (int64_t i = 0; i < group_; ++i) {
      AttentionHead each = head(unit / problem_.key_heads, unit % problem_.key_heads * group_ + i);
      each.sum_k = k;
      each.sum_v = v;
      executed_ += loops_.backward_rows(each, first, last, scratch);
    }
  }

  void clear(const Matrix& sums, int64_t dim) const {
    for (int64_t row = 0; row < problem_.keys; ++row) {
      std::memset(scalars_at(sums.data, row * sums.stride, problem_.element), 0,
                  static_cast<size_t>(dim * scalar_bytes(problem_.element)));
    }
  }

  /// Too few key heads for the threads: each is cut into ranges of queries with sums of their own.
  void units_in_parts(int64_t parts) {
    const KeySums k = key_sums(problem_.head_dim, parts), v = key_sums(problem_.value_dim, parts);
    run_tasks(units_ * parts, pool_, loops_.backward_scratch, [&](int64_t task, void* scratch) {
      const int64_t unit = task / parts, part = task % parts;
      rows_of_unit(unit, cut(unit, part, parts), cut(unit, part + 1, parts),
                   k.of(task, problem_.head_dim, problem_.element),
                   v.of(task, problem_.value_dim, problem_.element), scratch);
    });
    constexpr int64_t kRows = 512;
    const int64_t pieces = (problem_.keys + kRows - 1) / kRows;
    at::parallel_for(0, units_ * pieces, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t unit = i / pieces, row = i % pieces * kRows;
        const AttentionHead to =
            head(unit / problem_.key_heads, unit % problem_.key_heads * group_);
        const int64_t rows = std::min(kRows, problem_.keys - row);
        add_parts(k, unit * parts, parts, row, rows, problem_.head_dim, to.grad_k);
        add_parts(v, unit * parts, parts, row, rows, problem_.value_dim, to.grad_v);
      }
    });
  }

  void add_parts(const KeySums& sums, int64_t first, int64_t parts, int64_t row, int64_t rows,
                 int64_t dim, const Matrix& to) const {
    Matrix from = sums.of(first, dim, problem_.element);
    from.data = scalars_at(from.data, row * from.stride, problem_.element);
    const int64_t bytes = problem_.element == Element::f16 || problem_.element == Element::bf16
                              ? 2
                              : scalar_bytes(problem_.element);
    const Matrix at{static_cast<char*>(to.data) + row * to.stride * bytes, to.stride};
    loops_.round_sum(from, parts, sums.part, rows, dim, at);
  }

  KeySums key_sums(int64_t dim, int64_t parts) const {
    const int64_t part = problem_.keys * padded(dim);
    return {pool_.empty({units_ * parts * part * scalar_bytes(problem_.element) / 4}), part};
  }

  /// The first query tile of a part: parts have about the same number of tiles to compute.
  int64_t cut(int64_t unit, int64_t part, int64_t parts) const {
    if (part == parts) return query_tiles();
    const int64_t b = unit / problem_.key_heads, h = unit % problem_.key_heads * group_;
    const auto before = [&](int64_t row) {
      int64_t tiles = 0;
      for (int64_t i = 0; i < group_; ++i) {
        tiles += layout_of(problem_, b, h + i).row_start[static_cast<size_t>(row)];
      }
      return tiles;
    };
    const int64_t all = before(query_tiles());
    int64_t row = 0;
    while (row < query_tiles() && before(row) * parts < all * part) ++row;
    return row;
  }

  // ---- two passes ----

  void rows_then_columns() {
    const int64_t queries = padded(problem_.queries);
    const auto terms = pool_.empty(
        {problem_.batch * problem_.heads * 2 * queries * scalar_bytes(problem_.element) / 4});
    const auto with_terms = [&](int64_t b, int64_t h) {
      AttentionHead result = head(b, h);
      const int64_t unit = b * problem_.heads + h;
      result.row_terms = scalars_at(terms.const_data_ptr(), unit * 2 * queries, problem_.element);
      return result;
    };
    std::vector<const std::vector<int32_t>*> rows, columns;
    for (int64_t i = 0; i < problem_.batch * problem_.heads; ++i) {
      rows.push_back(&problem_.layouts[i]->row_start);
    }
    for (int64_t i = 0; i < units_; ++i) {
      columns.push_back(
          &layout_of(problem_, i / problem_.key_heads, i % problem_.key_heads * group_)
               .column_start);
    }
    const auto row_tasks = ordered_by_work(rows), column_tasks = ordered_by_work(columns);
    run_tasks(static_cast<int64_t>(row_tasks.size()), pool_, loops_.backward_scratch,
              [&](int64_t t, void* scratch) {
                const auto [unit, tile] = row_tasks[static_cast<size_t>(t)];
                const auto each = with_terms(unit / problem_.heads, unit % problem_.heads);
                executed_ += loops_.backward_rows(each, tile, tile + 1, scratch);
              });
    run_tasks(static_cast<int64_t>(column_tasks.size()), pool_, loops_.backward_scratch,
              [&](int64_t t, void* scratch) {
                const auto [unit, tile] = column_tasks[static_cast<size_t>(t)];
                std::vector<AttentionHead> heads;
                for (int64_t i = 0; i < group_; ++i) {
                  heads.push_back(with_terms(unit / problem_.key_heads,
                                             unit % problem_.key_heads * group_ + i));
                }
                executed_ += loops_.backward_columns(heads.data(), group_, tile, scratch);
              });
  }

  int64_t query_tiles() const {
    return static_cast<int64_t>(problem_.layouts[0]->row_start.size()) - 1;
  }
  static int64_t padded_bytes(int64_t bytes) { return (bytes + 63) / 64 * 64; }
  int64_t sum_bytes(int64_t dim) const {
    if (loops_.sums_in_place(dim)) return 0;
    return padded_bytes(problem_.keys * padded(dim) * scalar_bytes(problem_.element));
  }

  const AttentionProblem& problem_;
  const AttentionGradients& gradients_;
  detail::BufferPool& pool_;
  const TileKernels& loops_;
  int64_t group_;
  int64_t units_;
  std::atomic<int64_t> executed_{0};
};

}  // namespace

void attention_backward(const AttentionProblem& problem, const AttentionGradients& gradients,
                        detail::BufferPool& scratch, Passes passes, AttentionStatistics* statistics,
                        const BlockKernels* kernels) {
  if (problem.batch * problem.heads == 0) return;
  Backward backward(problem, gradients, scratch, tile_kernels(problem, kernels));
  backward.run(passes);
  if (statistics != nullptr) statistics->executed_tiles += backward.executed();
}

}  // namespace torchlore::kernels
