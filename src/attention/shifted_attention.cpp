#include "shifted_attention.hpp"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace torchlore::attention {
namespace {

using kernels::kShiftedTile;
using kernels::kShiftedWidth;
using kernels::ShiftedDots;
using kernels::ShiftedLoops;
using kernels::ShiftedRows;
using kernels::ShiftedSums;
using kernels::ShiftedTable;
using kernels::Shifts;

int64_t rounded_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// Calls f(head, begin, end) for all tiles of rows of all heads. Threads take tile after tile, so
/// that they read the same part of the same head, which the last cache then holds for both.
template <typename F>
void for_each_tile(int64_t heads, int64_t rows, const F& f) {
  const int64_t tiles = rounded_up(rows, kShiftedTile) / kShiftedTile;
  std::atomic<int64_t> next = 0;
  const auto work = [&](int64_t, int64_t) {
    for (int64_t task = next++; task < heads * tiles; task = next++) {
      const int64_t begin = task % tiles * kShiftedTile;
      f(task / tiles, begin, std::min(begin + kShiftedTile, rows));
    }
  };
  at::parallel_for(0, std::min<int64_t>(at::get_num_threads(), heads * tiles), 1, work);
}

/// Rows of some heads, [heads, rows, width], in the type that sums run in.
template <typename T>
struct Rows {
  /// Views the tensor where it can be read as it is, else converts and pads it.
  explicit Rows(const at::Tensor& from) : tensor(from) {
    if (from.scalar_type() == kType && from.stride(-1) == 1 && from.size(-1) % kShiftedWidth == 0) {
      return;
    }
    const int64_t width = from.size(-1);
    tensor = at::constant_pad_nd(from.to(kType), {0, rounded_up(width, kShiftedWidth) - width})
                 .contiguous();
  }

  ShiftedRows<const T> head(int64_t h) const {
    return {tensor.const_data_ptr<T>() + h * tensor.stride(0), tensor.stride(1)};
  }
  int64_t count() const { return tensor.size(1); }
  int64_t width() const { return tensor.size(2); }

  static constexpr at::ScalarType kType = std::is_same_v<T, float> ? at::kFloat : at::kDouble;
  at::Tensor tensor;
};

/// The same to be written to; `finish` copies it to where it belongs, if it is not there.
template <typename T>
struct ResultRows {
  explicit ResultRows(const at::Tensor& to) : target(to), tensor(to) {
    if (to.scalar_type() == Rows<T>::kType && to.stride(-1) == 1 &&
        to.size(-1) % kShiftedWidth == 0) {
      return;
    }
    tensor = at::empty({to.size(0), to.size(1), rounded_up(to.size(2), kShiftedWidth)},
                       to.options().dtype(Rows<T>::kType));
  }

  ShiftedRows<T> head(int64_t h) const {
    return {tensor.mutable_data_ptr<T>() + h * tensor.stride(0), tensor.stride(1)};
  }
  /// Whether a head's rows are more than a cache should be filled with while they are written.
  bool around_caches() const {
    constexpr int64_t most_bytes = int64_t{8} << 20;
    const auto element = static_cast<int64_t>(sizeof(T));
    const bool aligned = reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 64 == 0 &&
                         tensor.stride(0) * element % 64 == 0 &&
                         tensor.stride(1) * element % 64 == 0;
    return aligned && tensor.size(1) * tensor.size(2) * element >= most_bytes;
  }
  void finish() const {
    if (!tensor.is_same(target)) target.copy_(tensor.narrow(2, 0, target.size(2)));
  }

  at::Tensor target;
  at::Tensor tensor;
};

/// A number for each query and shift of some heads.
template <typename T>
struct Table {
  Table(int64_t heads, int64_t shifts, int64_t queries)
      : tensor(at::empty({heads, rounded_up(queries, kShiftedTile) * shifts}, Rows<T>::kType)) {}

  ShiftedTable<T> head(int64_t h) const {
    return {tensor.mutable_data_ptr<T>() + h * tensor.stride(0)};
  }
  ShiftedTable<const T> read(int64_t h) const { return {head(h).data}; }

  at::Tensor tensor;
};

/// One call: sizes, and how many key heads are worked on at once.
struct Call {
  Call(const at::Tensor& q, const at::Tensor& k, const KeyShifts& key_shifts, double factor)
      : queries(q.size(2)),
        keys(k.size(2)),
        key_heads(k.size(1)),
        group(q.size(1) / std::max<int64_t>(key_heads, 1)),
        scale(factor),
        shifts(key_shifts) {
    for (const int64_t shift : shifts) back.push_back(-shift);
    // Few heads at a time keep the tables small; short sequences need several to feed the threads.
    constexpr int64_t tiles = 64;
    heads_at_once = std::clamp<int64_t>(tiles * kShiftedTile / std::max<int64_t>(queries, 1), 1,
                                        std::max<int64_t>(key_heads, 1));
  }

  int64_t count() const { return static_cast<int64_t>(shifts.size()); }
  Shifts to_keys() const { return {shifts.data(), count(), keys}; }
  Shifts to_queries() const { return {back.data(), count(), queries}; }

  /// Calls f(batch entry, first key head, number of key heads).
  template <typename F>
  void for_each_group(int64_t batch, const F& f) const {
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t h = 0; h < key_heads; h += heads_at_once) {
        f(b, h, std::min(heads_at_once, key_heads - h));
      }
    }
  }

  /// Key heads [h, h + n) of one batch entry.
  static at::Tensor of_keys(const at::Tensor& t, int64_t b, int64_t h, int64_t n) {
    return t.select(0, b).narrow(0, h, n);
  }
  /// The query heads that are number `member` of those which each of them serves.
  at::Tensor of_queries(const at::Tensor& t, int64_t b, int64_t h, int64_t n,
                        int64_t member) const {
    return t.select(0, b).slice(0, h * group + member, (h + n) * group, group);
  }

  int64_t queries;
  int64_t keys;
  int64_t key_heads;
  int64_t group;
  double scale;
  KeyShifts shifts;
  KeyShifts back = {};
  int64_t heads_at_once = 1;
};

template <typename T>
const ShiftedLoops<T>& loops_of(const kernels::ShiftedKernels* kernels) {
  if (kernels == nullptr) kernels = &kernels::shifted_kernels();
  if constexpr (std::is_same_v<T, float>) {
    return kernels->single;
  } else {
    return kernels->wide;
  }
}

template <typename T>
void forward(const Call& call, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
             const AttentionOutput& result, const ShiftedLoops<T>& loops) {
  constexpr T absent = -std::numeric_limits<T>::infinity();
  const Table<T> table(call.heads_at_once, call.count(), call.queries);
  call.for_each_group(q.size(0), [&](int64_t b, int64_t h, int64_t n) {
    const Rows<T> keys(Call::of_keys(k, b, h, n)), values(Call::of_keys(v, b, h, n));
    for (int64_t member = 0; member < call.group; ++member) {
      const Rows<T> rows(call.of_queries(q, b, h, n, member));
      const ResultRows<T> out(call.of_queries(result.out, b, h, n, member));
      const auto log_sum_exp = call.of_queries(result.log_sum_exp, b, h, n, member);
      auto* sums = log_sum_exp.template mutable_data_ptr<T>();
      const int64_t step = log_sum_exp.stride(0);
      // Scores first and values then: two long tables at a time are what the last cache holds.
      for_each_tile(n, call.queries, [&](int64_t i, int64_t begin, int64_t end) {
        loops.dots({call.to_keys(), rows.width(), static_cast<T>(call.scale), absent, rows.head(i),
                    keys.head(i), table.head(i)},
                   begin, end);
        loops.softmax(table.head(i), call.count(), sums + i * step, begin, end);
      });
      for_each_tile(n, call.queries, [&](int64_t i, int64_t begin, int64_t end) {
        loops.sums({.shifts = call.to_keys(),
                    .width = values.width(),
                    .weights = table.read(i),
                    .around_caches = out.around_caches(),
                    .y = values.head(i),
                    .out = out.head(i)},
                   begin, end);
      });
      out.finish();
    }
  });
}

/// The backward of one query head of each of some key heads.
template <typename T>
class Backward {
 public:
  Backward(const Call& call, const ShiftedLoops<T>& loops)
      : call_(call),
        loops_(loops),
        weights_(call.heads_at_once, call.count(), call.queries),
        gradients_(call.heads_at_once, call.count(), call.queries),
        deltas_(call.heads_at_once, 1, call.queries) {}

  /// The gradients of the weights, and Σ out · grad_out of each row less the gradient of its log-sum-exp,
  /// which may be undefined.
  void weight_gradients(const Rows<T>& v, const Rows<T>& out, const Rows<T>& grad_out,
                        const at::Tensor& grad_log_sum_exp) const {
    static constexpr int64_t same = 0;
    const at::Tensor grad_sums = grad_log_sum_exp.defined()
                                     ? grad_log_sum_exp.to(Rows<T>::kType).contiguous()
                                     : at::Tensor();
    for_each_tile(heads(v), call_.queries, [&](int64_t i, int64_t begin, int64_t end) {
      T* deltas = deltas_.head(i).data;
      loops_.dots({{&same, 1, call_.queries},
                   out.width(),
                   1,
                   0,
                   out.head(i),
                   grad_out.head(i),
                   deltas_.head(i)},
                  begin, end);
      if (grad_sums.defined()) {
        const T* gradients = grad_sums.const_data_ptr<T>() + i * call_.queries;
        for (int64_t row = begin; row < end; ++row) deltas[row] -= gradients[row];
      }
      loops_.dots(
          {call_.to_keys(), v.width(), 1, 0, grad_out.head(i), v.head(i), gradients_.head(i)},
          begin, end);
    });
  }

  /// The weights anew, from them the gradients of the scores, and the queries' own: the keys that a tile
  /// sees are still near when they are read for the second time.
  void query_gradients(const Rows<T>& q, const Rows<T>& k, const at::Tensor& log_sum_exp,
                       const ResultRows<T>& grad_q) const {
    constexpr T absent = -std::numeric_limits<T>::infinity();
    const auto scale = static_cast<T>(call_.scale);
    const auto* sums = log_sum_exp.const_data_ptr<T>();
    for_each_tile(heads(q), call_.queries, [&](int64_t i, int64_t begin, int64_t end) {
      loops_.dots(
          {call_.to_keys(), q.width(), scale, absent, q.head(i), k.head(i), weights_.head(i)},
          begin, end);
      loops_.weights(weights_.head(i), call_.count(), sums + i * log_sum_exp.stride(0), begin, end);
      loops_.score_gradients(gradients_.head(i), weights_.read(i), call_.count(), scale,
                             deltas_.read(i).data, begin, end);
      loops_.sums({.shifts = call_.to_keys(),
                   .width = k.width(),
                   .weights = gradients_.read(i),
                   .around_caches = grad_q.around_caches(),
                   .y = k.head(i),
                   .out = grad_q.head(i)},
                  begin, end);
    });
  }

  /// A key is seen by the queries at the same shifts the other way: they are gathered, so nobody else
  /// writes to its row.
  void key_gradients(const Rows<T>& q, const ResultRows<T>& grad_k, bool add) const {
    gather(gradients_, q, grad_k, add);
  }
  void value_gradients(const Rows<T>& grad_out, const ResultRows<T>& grad_v, bool add) const {
    gather(weights_, grad_out, grad_v, add);
  }

 private:
  static int64_t heads(const Rows<T>& rows) { return rows.tensor.size(0); }

  void gather(const Table<T>& table, const Rows<T>& from, const ResultRows<T>& to, bool add) const {
    for_each_tile(heads(from), call_.keys, [&](int64_t i, int64_t begin, int64_t end) {
      loops_.sums({.shifts = call_.to_queries(),
                   .width = from.width(),
                   .weights = table.read(i),
                   .by_partner = true,
                   .add = add,
                   .around_caches = !add && to.around_caches(),
                   .y = from.head(i),
                   .out = to.head(i)},
                  begin, end);
    });
  }

  const Call& call_;
  const ShiftedLoops<T>& loops_;
  Table<T> weights_;
  Table<T> gradients_;
  Table<T> deltas_;
};

template <typename T>
void backward(const Call& call, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
              const AttentionSaved& saved, const AttentionInputGradients& result,
              const ShiftedLoops<T>& loops) {
  const Backward<T> work(call, loops);
  call.for_each_group(q.size(0), [&](int64_t b, int64_t h, int64_t n) {
    const Rows<T> keys(Call::of_keys(k, b, h, n)), values(Call::of_keys(v, b, h, n));
    const ResultRows<T> grad_k(Call::of_keys(result.key, b, h, n));
    const ResultRows<T> grad_v(Call::of_keys(result.value, b, h, n));
    for (int64_t member = 0; member < call.group; ++member) {
      const auto part = [&](const at::Tensor& t) {
        return t.defined() ? call.of_queries(t, b, h, n, member) : t;
      };
      const Rows<T> rows(part(q)), out(part(saved.out)), grad_out(part(saved.grad_out));
      const ResultRows<T> grad_q(part(result.query));
      // Each of these streams through one or two long tensors, all that the last cache can hold.
      work.weight_gradients(values, out, grad_out, part(saved.grad_log_sum_exp));
      work.query_gradients(rows, keys, part(saved.log_sum_exp), grad_q);
      work.value_gradients(grad_out, grad_v, member > 0);
      work.key_gradients(rows, grad_k, member > 0);
      grad_q.finish();
    }
    grad_k.finish();
    grad_v.finish();
  });
}

}  // namespace

AttentionOutput shifted_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                const KeyShifts& shifts, double scale,
                                const kernels::ShiftedKernels* kernels) {
  const bool wide = q.scalar_type() == at::kDouble;
  const AttentionOutput result{
      at::empty({q.size(0), q.size(1), q.size(2), v.size(3)}, q.options()),
      at::empty({q.size(0), q.size(1), q.size(2)}, wide ? at::kDouble : at::kFloat)};
  const Call call(q, k, shifts, scale);
  if (wide) {
    forward<double>(call, q, k, v, result, loops_of<double>(kernels));
  } else {
    forward<float>(call, q, k, v, result, loops_of<float>(kernels));
  }
  return result;
}

AttentionInputGradients shifted_backward(const at::Tensor& q, const at::Tensor& k,
                                         const at::Tensor& v, const KeyShifts& shifts, double scale,
                                         const AttentionSaved& saved,
                                         const kernels::ShiftedKernels* kernels) {
  const AttentionInputGradients result{at::empty(q.sizes(), q.options()),
                                       at::empty(k.sizes(), k.options()),
                                       at::empty(v.sizes(), v.options())};
  const Call call(q, k, shifts, scale);
  if (q.scalar_type() == at::kDouble) {
    backward<double>(call, q, k, v, saved, result, loops_of<double>(kernels));
  } else {
    backward<float>(call, q, k, v, saved, result, loops_of<float>(kernels));
  }
  return result;
}

}  // namespace torchlore::attention
