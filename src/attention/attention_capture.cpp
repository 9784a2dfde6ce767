#include "torchlore/attention/attention_capture.hpp"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/function.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "../intercept/frame.hpp"
#include "attention_op.hpp"
#include "scope_handler.hpp"
#include "torchlore/intercept/op_call.hpp"
#include "torchlore/intercept/op_mode.hpp"

namespace torchlore {
namespace {

using at::Tensor;
using attention::Attention;
using attention::Pattern;

/// The elements of a chunk of probabilities: 16 MiB.
constexpr int64_t kChunkElements = int64_t{1} << 22;

/// Gives the probabilities of the queries [from, to): float32 [B, H, to - from, S].
using Rows = std::function<Tensor(int64_t from, int64_t to)>;

/// Which of the keys the queries [from, to) see: [batch(), heads(), to - from, S] bool.
Tensor visible_rows(const BlockLayout& layout, int64_t from, int64_t to) {
  auto shown = at::zeros({layout.batch(), layout.heads(), to - from, layout.keys()}, at::kBool);
  for (int64_t b = 0; b < layout.batch(); ++b) {
    for (int64_t h = 0; h < layout.heads(); ++h) {
      const auto& tiles = layout.pattern(b, h);
      auto* const out = shown[b][h].data_ptr<bool>();
      for (int64_t q = from; q < to; ++q) {
        const auto row = static_cast<size_t>(q / tiles.tile);
        const auto place = static_cast<size_t>(q % tiles.tile);
        for (auto i = tiles.row_start[row]; i < tiles.row_start[row + 1]; ++i) {
          const auto at = static_cast<size_t>(i);
          const int64_t first = tiles.column[at] * tiles.tile;
          const auto bits = tiles.kind[at] == TileLayout::kFull
                                ? ~uint64_t{0}
                                : tiles.bits[static_cast<size_t>(tiles.kind[at])].by_query[place];
          for (int64_t k = first; k < std::min(first + tiles.tile, layout.keys()); ++k) {
            out[(q - from) * layout.keys() + k] = (bits >> (k - first) & 1) != 0;
          }
        }
      }
    }
  }
  return shown;
}

/// softmax(query keyᵀ scale + bias) of some rows, zero where `hidden` says so.
Tensor probabilities_of(const Attention& a, int64_t from, int64_t to,
                        const std::optional<Tensor>& bias, const std::optional<Tensor>& visible) {
  const auto query = a.query.narrow(2, from, to - from).to(at::kFloat);
  auto key = a.key.to(at::kFloat);
  if (key.size(1) != query.size(1)) {
    key = key.repeat_interleave(query.size(1) / key.size(1), 1);
  }
  const double scale = a.scale.value_or(1 / std::sqrt(static_cast<double>(query.size(3))));
  auto scores = at::matmul(query * scale, key.transpose(2, 3));
  if (bias) scores = scores + bias->to(at::kFloat);
  if (visible) {
    scores = scores + attention::bias_of(visible->to(scores.device()));
  }
  return at::_safe_softmax(scores, -1);
}

/// The rows of a mask that broadcasts over queries.
std::optional<Tensor> rows_of(const std::optional<Tensor>& mask, int64_t from, int64_t to) {
  if (!mask || mask->size(2) == 1) return mask;
  return mask->narrow(2, from, to - from);
}

/// What a forward pass leaves behind, and the summaries of it.
class CaptureHandler : public OpHandler {
 public:
  explicit CaptureHandler(const AttentionCaptureOptions& options) : options_(options) {}

  bool changes_results() const override { return false; }

  void boxed(OpCall& call) override {
    if (call.op().operator_name().name != "torchlore::sparse_attention") return call.run_parts();
    const auto count = static_cast<int64_t>(call.op().schema().arguments().size());
    const auto arguments = torch::jit::last(call.stack(), static_cast<size_t>(count)).vec();
    call.run();
    if (recording()) record_sparse(arguments);
  }

  Tensor scaled_dot_product_attention(const AttentionCall& call) override {
    auto out = call.run();
    if (recording() && attention::obstacle(call).empty()) record_dense(call);
    return out;
  }

  Tensor softmax(const Tensor& input, int64_t dim, std::optional<at::ScalarType> dtype) override {
    auto weights = OpHandler::softmax(input, dim, dtype);
    const auto rank = weights.dim();
    const bool may_be_weights =
        (rank == 3 || rank == 4) && (dim == -1 || dim == rank - 1) && weights.has_storage();
    if (recording() && may_be_weights) keep_weights(weights, weights);
    return weights;
  }

  Tensor dropout(const Tensor& input, double p, bool train) override {
    auto result = OpHandler::dropout(input, p, train);
    if (const auto weights = take_weights(input)) keep_weights(result, *weights);
    return result;
  }

  Tensor bmm(const Tensor& a, const Tensor& b) override {
    auto out = OpHandler::bmm(a, b);
    if (const auto weights = recording() ? take_weights(a) : std::nullopt) {
      record_weights(*weights);
    }
    return out;
  }

  std::vector<CapturedAttention> records() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return records_;
  }
  int64_t dropped() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return dropped_;
  }
  void clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    records_.clear();
    dropped_ = calls_ = used_ = 0;
  }

 private:
  /// Not in backward: what is computed again there was recorded in the forward.
  static bool recording() { return torch::autograd::get_current_node() == nullptr; }

  void keep_weights(const Tensor& where, const Tensor& weights) {
    if (!where.has_storage()) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    carrier_ = where.storage().getWeakStorageImpl();
    weights_ = weights.detach();
  }

  /// The weights that a tensor is, or is made of by dropout.
  std::optional<Tensor> take_weights(const Tensor& tensor) {
    if (!tensor.has_storage()) return std::nullopt;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!weights_.defined() || carrier_.lock().get() != tensor.storage().unsafeGetStorageImpl()) {
      return std::nullopt;
    }
    return std::exchange(weights_, Tensor());
  }

  void record_sparse(const std::vector<c10::IValue>& arguments) {
    const auto& layout = arguments[5].toCustomClass<Pattern>()->layout;
    Attention a{.query = arguments[0].toTensor().detach(),
                .key = arguments[1].toTensor().detach(),
                .value = arguments[2].toTensor().detach(),
                .scale = arguments[6].toDouble()};
    const auto bias = detached(arguments[3]);
    const auto slopes = detached(arguments[4]);
    const auto offset = arguments[7].toInt();
    add({.shape = a.shape(), .sparse = true, .density = layout.density()}, a.query.device(),
        [&](int64_t from, int64_t to) {
          auto added = rows_of(bias, from, to);
          if (slopes) {
            const auto line = alibi(*slopes, from + offset, to + offset, layout.keys());
            added = added ? *added + line : line;
          }
          return probabilities_of(a, from, to, added, visible_rows(layout, from, to));
        });
  }

  static std::optional<Tensor> detached(const c10::IValue& value) {
    if (value.isNone()) return std::nullopt;
    return value.toTensor().detach();
  }

  /// -slope |distance|, [H, to - from, keys].
  static Tensor alibi(const Tensor& slopes, int64_t from, int64_t to, int64_t keys) {
    const auto options = slopes.options().dtype(at::kFloat);
    const auto distance =
        (at::arange(from, to, options).unsqueeze(1) - at::arange(keys, options)).abs();
    return -slopes.to(at::kFloat).view({-1, 1, 1}) * distance;
  }

  void record_dense(const AttentionCall& call) {
    auto detached = call;
    for (auto* part : {&detached.query, &detached.key, &detached.value}) *part = part->detach();
    if (detached.attn_mask) detached.attn_mask = detached.attn_mask->detach();
    const auto a = attention::attention_of(detached, 0);
    const auto shape = a.shape();
    add({.shape = shape}, a.query.device(), [&](int64_t from, int64_t to) {
      std::optional<Tensor> visible;
      if (a.is_causal) {
        visible = at::ones({to - from, shape.keys}, at::kBool).tril(from);
      }
      return probabilities_of(a, from, to, rows_of(a.bias, from, to), visible);
    });
  }

  void record_weights(const Tensor& weights) {
    const auto w = weights.dim() == 3 ? weights.unsqueeze(1) : weights;
    add({.shape = {w.size(0), w.size(1), w.size(2), w.size(3)}}, w.device(),
        [&](int64_t from, int64_t to) { return w.narrow(2, from, to - from).to(at::kFloat); });
  }

  void add(CapturedAttention one, c10::Device device, const Rows& rows) {
    const at::NoGradGuard no_grad;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const int64_t call = calls_++;
      one.layer = options_.layers > 0 ? call % options_.layers : call;
      if (!allocate(one, device)) {
        ++dropped_;
        return;
      }
    }
    fill(one, rows);
    const std::lock_guard<std::mutex> lock(mutex_);
    records_.push_back(std::move(one));
  }

  /// Makes the record's tensors, if they fit into the limit.
  bool allocate(CapturedAttention& one, c10::Device device) {
    const auto& s = one.shape;
    const int64_t rows = s.batch * s.heads * s.queries;
    const int64_t top = std::min(options_.top_k, s.keys);
    const auto blocks = [&](int64_t n) { return (n + block() - 1) / block(); };
    const int64_t mass =
        options_.block_size > 0 ? s.batch * s.heads * blocks(s.queries) * blocks(s.keys) : 0;
    const int64_t summaries = rows * 4 + rows * top * 12 + mass * 4;
    const int64_t all = rows * s.keys * 4;
    if (used_ + summaries > options_.limit.count()) return false;
    used_ += summaries;
    const auto floats = at::TensorOptions(device).dtype(at::kFloat);
    one.entropy = at::zeros({s.batch, s.heads, s.queries}, floats);
    if (top > 0) {
      one.top_keys = at::zeros({s.batch, s.heads, s.queries, top}, floats.dtype(at::kLong));
      one.top_probabilities = at::zeros({s.batch, s.heads, s.queries, top}, floats);
    }
    if (mass > 0) {
      one.block_mass = at::zeros({s.batch, s.heads, blocks(s.queries), blocks(s.keys)}, floats);
    }
    if (options_.probabilities && used_ + all <= options_.limit.count()) {
      used_ += all;
      one.probabilities = at::zeros({s.batch, s.heads, s.queries, s.keys}, floats);
    }
    return true;
  }

  int64_t block() const { return std::max<int64_t>(options_.block_size, 1); }

  void fill(CapturedAttention& one, const Rows& rows) const {
    const auto& s = one.shape;
    const int64_t row = std::max<int64_t>(s.batch * s.heads * s.keys, 1);
    const int64_t step = std::max<int64_t>(kChunkElements / row / block(), 1) * block();
    for (int64_t from = 0; from < s.queries && row > 0; from += step) {
      const int64_t count = std::min(step, s.queries - from);
      const auto p = rows(from, from + count);
      one.entropy.narrow(2, from, count).copy_(at::special_entr(p).sum(-1));
      if (one.top_keys.defined()) {
        const auto [values, keys] = at::topk(p, one.top_keys.size(3));
        one.top_probabilities.narrow(2, from, count).copy_(values);
        one.top_keys.narrow(2, from, count).copy_(keys);
      }
      if (one.block_mass.defined()) {
        const auto mass = mass_of(p);
        one.block_mass.narrow(2, from / block(), mass.size(2)).copy_(mass);
      }
      if (one.probabilities.defined()) one.probabilities.narrow(2, from, count).copy_(p);
    }
  }

  /// [B, H, R, S] -> [B, H, ⌈R / size⌉, ⌈S / size⌉]
  Tensor mass_of(const Tensor& p) const {
    const int64_t size = block();
    const auto missing = [size](int64_t n) { return (size - n % size) % size; };
    const auto padded = at::constant_pad_nd(p, {0, missing(p.size(3)), 0, missing(p.size(2))});
    const int64_t queries = padded.size(2) / size, keys = padded.size(3) / size;
    const auto sums = padded.view({p.size(0), p.size(1), queries, size, keys, size}).sum({3, 5});
    auto counts = at::full({queries, 1}, size, p.options());
    counts[queries - 1].fill_(p.size(2) - (queries - 1) * size);
    return sums / counts;
  }

  const AttentionCaptureOptions options_;
  mutable std::mutex mutex_;
  std::vector<CapturedAttention> records_;
  int64_t calls_ = 0, dropped_ = 0, used_ = 0;
  c10::weak_intrusive_ptr<c10::StorageImpl> carrier_{c10::intrusive_ptr<c10::StorageImpl>()};
  Tensor weights_;
};

AttentionCaptureOptions checked(const AttentionCaptureOptions& options) {
  const auto check = [](const char* name, int64_t value) {
    TORCH_CHECK_VALUE(value >= 0, "AttentionCaptureOptions::", name, " must be 0 or more, but is ",
                      value);
  };
  check("limit", options.limit.count());
  check("top_k", options.top_k);
  check("block_size", options.block_size);
  check("layers", options.layers);
  for (auto* frame = intercept::innermost; frame != nullptr; frame = frame->outer.get()) {
    TORCH_CHECK(
        !frame->callable() || !frame->changes_results,
        "AttentionCapture was opened inside an OpMode whose handler changes results, such as "
        "a SparseAttentionScope, and would not see what becomes of an attention; open the "
        "capture first and the other inside it");
  }
  return options;
}

}  // namespace

struct AttentionCapture::State {
  explicit State(const AttentionCaptureOptions& options)
      : handler(std::make_shared<CaptureHandler>(checked(options))) {}
  std::shared_ptr<CaptureHandler> handler;
  OpMode mode{handler};
};

AttentionCapture::AttentionCapture(AttentionCaptureOptions options)
    : state_(std::make_unique<State>(options)) {}
AttentionCapture::~AttentionCapture() = default;

std::vector<CapturedAttention> AttentionCapture::records() const {
  return state_->handler->records();
}
int64_t AttentionCapture::dropped() const { return state_->handler->dropped(); }
void AttentionCapture::clear() { state_->handler->clear(); }

}  // namespace torchlore
