#include "deferred_scores.hpp"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ExpandUtils.h>
#include <ATen/WrapDimUtils.h>
#include <ATen/autocast_mode.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/function.h>

#include <algorithm>
#include <array>
#include <limits>
#include <tuple>
#include <utility>

namespace torchlore::attention {
namespace {

using intercept::as_deferred;
using Kind = Step::Kind;

constexpr const char* kOps = "bmm, softmax, bmm";

/// Brings a moment's settings back while in scope.
class MomentGuard {
 public:
  explicit MomentGuard(const Moment& moment)
      : inference_(moment.inference),
        grad_(moment.grad),
        autocast_(moment.autocast),
        modes_(moment.modes) {}

 private:
  c10::InferenceMode inference_;
  at::AutoGradMode grad_;
  AutocastStateGuard autocast_;
  OpModeGuard modes_;
};

c10::OperatorHandle find_op(const char* name, const char* overload = "") {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, overload);
}

/// The dtype of an op's result under the autocast of now: `run` computes on tensors without elements.
template <typename F>
at::ScalarType dtype_of(const F& run) {
  const OpModeGuard no_modes{OpModeState()};
  const at::NoGradGuard no_grad;
  return run().scalar_type();
}

/// A tensor of [0, 1, 1] to compute a dtype with.
at::Tensor nothing(at::ScalarType dtype, const at::Tensor& like) {
  return at::empty({0, 1, 1}, like.options().dtype(dtype).requires_grad(false));
}

bool plain(const at::Tensor& t) {
  return t.defined() && t.has_storage() && t.layout() == at::kStrided && !t.is_neg() &&
         !t.is_quantized() && t.is_floating_point();
}

/// Whether a backward that records no graph of its own runs on this thread.
bool in_plain_backward() {
  return !at::GradMode::is_enabled() && torch::autograd::get_current_node() != nullptr;
}

bool can_be_scores(const at::Tensor& q, const at::Tensor& k) {
  // A transposed key has neighbouring elements along D, as the key that it is a view of.
  return plain(q) && plain(k) && q.dim() == 3 && k.dim() == 3 && q.size(0) == k.size(0) &&
         q.size(2) == k.size(1) && q.scalar_type() == k.scalar_type() && q.device() == k.device() &&
         k.stride(1) == 1 && q.numel() > 0 && k.numel() > 0 && !in_plain_backward();
}

bool wants_gradient(const std::vector<Given>& given) {
  return at::GradMode::is_enabled() && std::any_of(given.begin(), given.end(), [](const Given& g) {
           return g.get().requires_grad();
         });
}

// --- Computing after all -------------------------------------------------------------------------

/// The weights of a recognised attention: what it gives for the columns of the identity as values.
at::Tensor weights_of(const Step& step, const Answer& answer) {
  constexpr int64_t kColumns = 256;
  for (const auto& given : answer.given) given.get();  // unchanged
  auto attention = answer.attention;
  attention.dropout = step.dropout;  // none if these are the weights before dropout
  attention.dropout_seed = step.dropout_seed;
  const int64_t keys = attention.key.size(2);
  std::vector<at::Tensor> columns;
  for (int64_t from = 0; from < keys; from += kColumns) {
    const int64_t count = std::min(kColumns, keys - from);
    auto values = at::zeros({keys, count}, attention.key.options().requires_grad(false));
    values.narrow(0, from, count).fill_diagonal_(1);
    attention.value = values.expand({attention.key.size(0), attention.key.size(1), keys, count});
    columns.push_back(run_sparse(attention, answer.layout, /*allow_dense=*/false));
  }
  return at::cat(columns, -1).reshape(step.sizes).to(step.dtype);
}

at::Tensor run_op(const Step& step, const at::Tensor& input) {
  torch::jit::Stack stack{input};  // of an op in place: nobody else has it, see `add`
  for (const auto& given : step.given) stack.emplace_back(given.get());
  stack.insert(stack.end(), step.others.begin(), step.others.end());
  step.op.callBoxed(&stack);
  return std::move(stack.front()).toTensor();
}

/// Computes a step and all that come after it: once the elements are in the open, anything may write
/// to them, and what was to be computed from them would be wrong.
at::Tensor compute(const std::shared_ptr<Step> step) {  // held: those after it may let go of it
  if (step->value.defined()) return step->value;
  at::Tensor input;
  if (!step->answer && step->before) {
    input = compute(step->before);
    if (step->value.defined()) return step->value;  // as one that comes after it
  }
  {
    const MomentGuard then(step->moment);
    if (step->answer) {
      step->value = weights_of(*step, *step->answer);
    } else if (step->before) {
      step->value = run_op(*step, input);
    } else {
      step->value = at::bmm(step->given.at(0).get(), step->given.at(1).get());
    }
  }
  for (const auto& weak : std::exchange(step->after, {})) {
    if (const auto next = weak.lock()) compute(next);
  }
  step->given.clear();
  step->before.reset();
  return step->value;
}

// --- Recognising ---------------------------------------------------------------------------------

/// The steps of an attention, from its weights back to its scores.
struct Chain {
  Step* dropout = nullptr;
  Step* softmax = nullptr;
  std::vector<const Step*> masks = {};
  const Step* apart = nullptr;  ///< the view that tells batch and heads apart
  const Step* scores = nullptr;
};

std::optional<Chain> chain_of(Step* step) {
  Chain chain;
  for (; step != nullptr; step = step->before.get()) {
    if (step->value.defined()) return std::nullopt;
    if (step->kind == Kind::dropout && !chain.softmax && !chain.dropout) {
      chain.dropout = step;
    } else if (step->kind == Kind::softmax && !chain.softmax) {
      chain.softmax = step;
    } else if (!chain.softmax) {
      return std::nullopt;
    } else if (step->kind == Kind::add || step->kind == Kind::fill) {
      chain.masks.push_back(step);
    } else if (step->kind == Kind::view) {
      if (step->sizes.size() == 4) chain.apart = step;
    } else if (step->kind == Kind::scores) {
      chain.scores = step;
    } else {
      return std::nullopt;
    }
  }
  if (chain.scores == nullptr) return std::nullopt;
  return chain;
}

/// Batch entries and heads of a product of `n` matrices; heads is 1 if nothing tells them apart.
std::pair<int64_t, int64_t> batch_and_heads(const Chain& chain, int64_t n, int64_t heads_option) {
  if (chain.apart != nullptr) return {chain.apart->sizes[0], chain.apart->sizes[1]};
  if (heads_option == 0) return {n, 1};
  TORCH_CHECK_VALUE(n % heads_option == 0, "SparseAttentionScopeOptions::heads is ", heads_option,
                    ", but an attention inside the scope has batch x heads = ", n);
  return {n / heads_option, heads_option};
}

/// All masks as one.
std::optional<at::Tensor> bias_of(const Chain& chain, int64_t batch, int64_t heads) {
  std::optional<at::Tensor> bias;
  for (const auto* step : chain.masks) {
    const auto& mask = step->given.at(0).get();
    auto one = step->kind == Kind::fill ? attention::bias_of(mask.logical_not()) : mask;
    if (!one.is_floating_point()) one = one.to(at::kFloat);  // as LibTorch adds it
    one = mask_in_four(one, static_cast<int64_t>(step->sizes.size()), batch, heads);
    bias = bias ? *bias + one : one;
  }
  return bias;
}

Attention attention_of(const Chain& chain, const at::Tensor& values, int64_t heads_option) {
  const auto& query = chain.scores->given.at(0).get();
  const auto& transposed_key = chain.scores->given.at(1).get();
  const auto [batch, heads] = batch_and_heads(chain, query.size(0), heads_option);
  const auto apart = [b = batch, h = heads](const at::Tensor& x) { return x.unflatten(0, {b, h}); };
  Attention a{.query = apart(query),
              .key = apart(transposed_key.transpose(1, 2)),
              .value = apart(values),
              .bias = bias_of(chain, batch, heads),
              .scale = 1.0,
              .merged = chain.apart == nullptr && heads_option == 0};
  if (chain.dropout != nullptr) {
    a.dropout = chain.dropout->dropout;
    a.dropout_seed = chain.dropout->dropout_seed;
  }
  return a;
}

/// Whether the values go with the scores.
bool fit(const Step& scores, const at::Tensor& values) {
  const auto& query = scores.given.at(0).get();
  return plain(values) && values.dim() == 3 && values.size(0) == scores.sizes[0] &&
         values.size(1) == scores.sizes[2] && values.device() == query.device() &&
         values.numel() > 0 &&
         (values.scalar_type() == query.scalar_type() ||
          at::autocast::is_autocast_enabled(query.device().type()));
}

uint64_t draw_seed() {
  const auto generator = at::globalContext().defaultGenerator(at::kCPU);
  auto* cpu = at::check_generator<at::CPUGeneratorImpl>(generator);
  const std::lock_guard<std::mutex> lock(cpu->mutex_);
  return cpu->random64();
}

}  // namespace

Moment::Moment() : grad(at::GradMode::is_enabled()), inference(c10::InferenceMode::is_enabled()) {}

Given::Given(const at::Tensor& tensor)
    : tensor_(tensor.is_inference() ? tensor.clone() : tensor),
      version_(tensor.is_inference() ? 0 : tensor._version()) {}

const at::Tensor& Given::get() const {
  TORCH_CHECK(
      tensor_.is_inference() || tensor_._version() == version_,
      "a tensor that the scores of an attention are computed from was written in place "
      "after the scores: inside a SparseAttentionScope they are computed when an op asks for "
      "them; write to a copy, or let SparseAttentionScopeOptions::where leave this "
      "attention out");
  return tensor_;
}

// --- The tensor ----------------------------------------------------------------------------------

DeferredScores::DeferredScores(const at::Tensor& like, std::shared_ptr<Step> step,
                               const std::shared_ptr<ScopeHandler>& handler,
                               std::shared_ptr<std::recursive_mutex> mutex)
    : DeferredTensor(like, step->sizes, step->dtype),
      handler_(handler),
      owner_(handler.get()),
      mutex_(std::move(mutex)),
      step_(std::move(step)) {}

std::optional<at::Tensor> DeferredScores::of(const std::shared_ptr<ScopeHandler>& handler,
                                             const at::Tensor& query,
                                             const at::Tensor& transposed_key) {
  static const auto op = find_op("aten::bmm");
  if (!can_be_scores(query, transposed_key)) return std::nullopt;
  Step step{.kind = Kind::scores, .op = op};
  step.dtype = dtype_of([&, a = nothing(query.scalar_type(), query)] { return at::bmm(a, a); });
  step.sizes = {query.size(0), query.size(1), transposed_key.size(2)};
  step.given = {Given(query), Given(transposed_key)};
  const bool gradient = wants_gradient(step.given);
  at::Tensor scores(
      c10::make_intrusive<DeferredScores>(query, std::make_shared<Step>(std::move(step)), handler,
                                          std::make_shared<std::recursive_mutex>()));
  if (gradient) intercept::require_gradient(scores);
  return scores;
}

at::Tensor DeferredScores::self() const {
  return at::Tensor(
      c10::intrusive_ptr<c10::TensorImpl>::reclaim_copy(const_cast<DeferredScores*>(this)));
}

at::Tensor DeferredScores::value() {
  const std::lock_guard<std::recursive_mutex> lock(*mutex_);
  return compute(step_);
}

bool DeferredScores::can_go_on() const {
  return !step_->value.defined() && !handler_.expired() &&
         step_->moment.grad == at::GradMode::is_enabled() &&
         step_->moment.inference == c10::InferenceMode::is_enabled();
}

Step DeferredScores::step_after(Kind kind, const c10::OperatorHandle& op) const {
  Step step{.kind = kind, .op = op};
  step.before = step_;
  step.sizes = step_->sizes;
  step.dtype = step_->dtype;
  return step;
}

at::Tensor DeferredScores::next(Step step) const {
  const bool gradient =
      at::GradMode::is_enabled() && (self().requires_grad() || wants_gradient(step.given));
  auto shared = std::make_shared<Step>(std::move(step));
  step_->after.push_back(shared);
  at::Tensor result(
      c10::make_intrusive<DeferredScores>(self(), std::move(shared), handler_.lock(), mutex_));
  if (gradient) intercept::require_gradient(result);
  return result;
}

bool DeferredScores::answer(const c10::OperatorHandle& op, torch::jit::Stack& stack) {
  const std::lock_guard<std::recursive_mutex> lock(*mutex_);
  const auto count = op.schema().arguments().size();
  auto* const arguments = stack.data() + (stack.size() - count);
  const auto& name = op.operator_name();
  const auto full = name.overload_name.empty() ? name.name : name.name + "." + name.overload_name;
  const auto takes_only_this = [&] {
    return arguments[0].isTensor() && as_deferred(arguments[0].toTensor()) == this &&
           std::none_of(arguments + 1, arguments + count, [](const c10::IValue& argument) {
             return argument.isTensor() && as_deferred(argument.toTensor()) != nullptr;
           });
  };
  auto result = can_go_on() && takes_only_this() ? take(full, op, arguments) : std::nullopt;
  if (!result) {
    const bool weights = step_->kind == Kind::softmax || step_->kind == Kind::dropout;
    if (weights && !step_->answer && !step_->value.defined()) {
      left_alone("its weights were asked for by " + full);
    }
    return false;
  }
  torch::jit::drop(stack, count);
  stack.emplace_back(*std::move(result));
  return true;
}

DeferredScores::Result DeferredScores::take(const std::string& op_name,
                                            const c10::OperatorHandle& op, c10::IValue* arguments) {
  if (op_name == "aten::add_.Tensor") return add(op, arguments, /*in_place=*/true);
  if (op_name == "aten::add.Tensor") return add(op, arguments, /*in_place=*/false);
  if (op_name == "aten::masked_fill.Scalar") return masked_fill(op, arguments);
  if (op_name == "aten::_softmax") return inner_softmax(op, arguments);
  if (op_name == "aten::view") return view(op, arguments);
  if (op_name == "aten::sum.dim_IntList") return sum(op, arguments);
  if (op_name == "aten::div.Scalar") return divide(op, arguments);
  if (op_name == "aten::bmm") return times(arguments[1].toTensor());
  return std::nullopt;
}

DeferredScores::Result DeferredScores::add(const c10::OperatorHandle& op, c10::IValue* arguments,
                                           bool in_place) {
  const auto& mask = arguments[1].toTensor();
  const bool fits = mask.defined() && mask.has_storage() && mask.device() == device() &&
                    !mask.is_complex() && at::is_expandable_to(mask.sizes(), step_->sizes) &&
                    arguments[2].toScalar().equal(1) &&
                    (in_place || mask.dim() == 0 ||
                     c10::promoteTypes(mask.scalar_type(), step_->dtype) == step_->dtype);
  // An op in place is to be seen by views of the same elements, and not by other ops before it.
  const bool alone = step_.use_count() == 1 && step_->kind != Kind::view;
  const bool before_softmax = step_->kind <= Kind::view;
  if (!fits || !before_softmax || (in_place && !alone)) return std::nullopt;
  auto step = step_after(Kind::add, op);
  step.given = {Given(mask)};
  step.others = {arguments[2]};
  if (!in_place) return next(std::move(step));
  const bool gradient = !self().requires_grad() && wants_gradient(step.given);
  auto shared = std::make_shared<Step>(std::move(step));
  step_->after.push_back(shared);
  step_ = std::move(shared);
  if (gradient) intercept::require_gradient(self());
  return self();
}

DeferredScores::Result DeferredScores::masked_fill(const c10::OperatorHandle& op,
                                                   c10::IValue* arguments) {
  // Added to any score that is not huge, these give a weight of zero like -inf.
  constexpr double kAsGoodAsHidden = -1e9;
  const auto& mask = arguments[1].toTensor();
  const auto value = arguments[2].toScalar();
  if (!mask.defined() || !mask.has_storage() || mask.scalar_type() != at::kBool ||
      mask.device() != device() || !at::is_expandable_to(mask.sizes(), step_->sizes) ||
      value.isComplex() || !(value.toDouble() <= kAsGoodAsHidden) || step_->kind > Kind::view) {
    return std::nullopt;
  }
  auto step = step_after(Kind::fill, op);
  step.given = {Given(mask)};
  step.others = {arguments[2]};
  return next(std::move(step));
}

DeferredScores::Result DeferredScores::view(const c10::OperatorHandle& op, c10::IValue* arguments) {
  if (!arguments[1].isIntList()) return std::nullopt;
  const auto to = arguments[1].toIntVector();
  const auto& from = step_->sizes;
  // Batch and heads as one number or two; queries and keys stay.
  const bool splits = from.size() == 3 && to.size() == 4 && to[0] * to[1] == from[0];
  const bool joins = from.size() == 4 && to.size() == 3 && from[0] * from[1] == to[0];
  if (!(splits || joins || to == from) || to.end()[-1] != from.end()[-1] ||
      to.end()[-2] != from.end()[-2]) {
    return std::nullopt;
  }
  auto step = step_after(Kind::view, op);
  step.sizes = to;
  step.others = {arguments[1]};
  return next(std::move(step));
}

DeferredScores::Result DeferredScores::softmax(int64_t dim, std::optional<at::ScalarType> dtype) {
  static const auto op = find_op("aten::softmax", "int");
  const std::lock_guard<std::recursive_mutex> lock(*mutex_);
  const auto rank = static_cast<int64_t>(step_->sizes.size());
  if (!can_go_on() || step_->kind > Kind::view || (dim != -1 && dim != rank - 1)) {
    return std::nullopt;
  }
  auto step = step_after(Kind::softmax, op);
  step.others = {dim, dtype ? c10::IValue(static_cast<int64_t>(*dtype)) : c10::IValue()};
  step.dtype = dtype_of([&] { return at::softmax(nothing(step_->dtype, self()), -1, dtype); });
  return next(std::move(step));
}

// What the softmax is made of: it comes alone if a mode inside the scope takes ops apart.
DeferredScores::Result DeferredScores::inner_softmax(const c10::OperatorHandle& op,
                                                     c10::IValue* arguments) {
  const auto dim = arguments[1].toInt();
  const auto rank = static_cast<int64_t>(step_->sizes.size());
  const bool to_float = arguments[2].toBool();
  if (to_float || step_->kind > Kind::view || (dim != -1 && dim != rank - 1)) return std::nullopt;
  auto step = step_after(Kind::softmax, op);
  step.others = {arguments[1], arguments[2]};
  step.dtype = dtype_of([&] { return at::_softmax(nothing(step_->dtype, self()), -1, false); });
  return next(std::move(step));
}

DeferredScores::Result DeferredScores::dropout(double p, bool train) {
  static const auto op = find_op("aten::dropout");
  const std::lock_guard<std::recursive_mutex> lock(*mutex_);
  if (!can_go_on() || step_->kind != Kind::softmax || step_->answer || !(p >= 0 && p < 1)) {
    return std::nullopt;
  }
  if (p == 0 || !train) return self();
  auto step = step_after(Kind::dropout, op);
  step.others = {p, train};
  step.dropout = p;
  step.dropout_seed = draw_seed();
  return next(std::move(step));
}

void DeferredScores::left_alone(const std::string& reason) {
  const auto handler = handler_.lock();
  if (reported_ || !handler || step_->sizes.size() != 3) return;
  reported_ = true;
  handler->left_alone(kOps, {step_->sizes[0], 1, step_->sizes[1], step_->sizes[2]}, reason);
}

DeferredScores::Result DeferredScores::times(const at::Tensor& values) {
  const std::lock_guard<std::recursive_mutex> lock(*mutex_);
  const auto handler = handler_.lock();
  if (!handler || step_->sizes.size() != 3 || step_->kind < Kind::softmax) return std::nullopt;
  if (!can_go_on()) {
    left_alone(step_->value.defined() ? "its scores were asked for before its second product"
                                      : "grad mode or inference mode changed on the way");
    return std::nullopt;
  }
  auto chain = chain_of(step_.get());
  if (!chain || !fit(*chain->scores, values)) {
    left_alone(chain ? "its values do not fit its scores" : "it has ops that are not known");
    return std::nullopt;
  }
  const auto attention = attention_of(*chain, values, handler->options().heads);
  if (!handler->meant(attention.shape())) {
    handler->left_out(kOps, attention.shape());
    reported_ = true;
    return std::nullopt;
  }
  const auto layout = handler->layout_of(attention);
  const auto dtype = dtype_of([&] {
    return at::bmm(nothing(step_->dtype, values), nothing(values.scalar_type(), values));
  });
  auto out = handler->run(attention, layout, kOps).to(dtype).flatten(0, 1);
  // From here on the weights are those of what ran.
  auto given = chain->scores->given;
  for (const auto* mask : chain->masks) given.push_back(mask->given.at(0));
  const auto answer = std::make_shared<const Answer>(Answer{attention, layout, std::move(given)});
  chain->softmax->answer = answer;
  if (chain->dropout != nullptr) chain->dropout->answer = answer;
  return out;
}

// --- Weights that a layer returns ----------------------------------------------------------------

namespace {

/// Whether all steps from here back are recognised weights, seen as they are or summed up.
bool of_answered_weights(const Step* step) {
  while (step != nullptr && !step->answer) {
    if (step->value.defined() || (step->kind != Kind::view && step->kind != Kind::reduce)) {
      return false;
    }
    step = step->before.get();
  }
  return step != nullptr;
}

}  // namespace

DeferredScores::Result DeferredScores::sum(const c10::OperatorHandle& op, c10::IValue* arguments) {
  if (!of_answered_weights(step_.get()) || !arguments[1].isIntList()) return std::nullopt;
  const auto rank = static_cast<int64_t>(step_->sizes.size());
  const auto dims = arguments[1].toIntVector();
  const bool keep = arguments[2].toBool();
  if (dims.size() != 1 || !arguments[3].isNone()) return std::nullopt;
  const auto dim = at::maybe_wrap_dim(dims[0], rank);
  auto step = step_after(Kind::reduce, op);
  if (keep) {
    step.sizes[static_cast<size_t>(dim)] = 1;
  } else {
    step.sizes.erase(step.sizes.begin() + dim);
  }
  step.others = {arguments[1], arguments[2], arguments[3]};
  step.dtype = dtype_of([&] { return at::sum(nothing(step_->dtype, self()), {0}, keep); });
  return next(std::move(step));
}

DeferredScores::Result DeferredScores::divide(const c10::OperatorHandle& op,
                                              c10::IValue* arguments) {
  if (!of_answered_weights(step_.get())) return std::nullopt;
  const auto by = arguments[1].toScalar();
  if (by.isComplex() || by.isSymbolic()) return std::nullopt;
  auto step = step_after(Kind::reduce, op);
  step.others = {arguments[1]};
  return next(std::move(step));
}

}  // namespace torchlore::attention
