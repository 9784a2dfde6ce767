#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "../intercept/deferred_tensor.hpp"
#include "scope_handler.hpp"
#include "torchlore/core/autocast_state.hpp"
#include "torchlore/intercept/op_mode.hpp"

/// The scores and weights of an attention between its two products, not yet computed.
namespace torchlore::attention {

/// The settings that an op ran under, to be brought back when it runs later.
struct Moment {
  bool grad;
  bool inference;
  AutocastState autocast = AutocastState::capture();
  OpModeState modes = OpModeState::capture();  ///< the modes around the scope

  Moment();
};

/// A tensor that an op was given, as it was then.
///
/// Later writes to it show in its version. In inference mode there is none, so it is copied.
class Given {
 public:
  explicit Given(const at::Tensor& tensor);
  /// @throws c10::Error if the tensor was written since.
  const at::Tensor& get() const;

 private:
  at::Tensor tensor_;
  int64_t version_;
};

/// What the steps up to one of them were recognised as.
struct Answer {
  Attention attention;
  BlockLayout layout;
  std::vector<Given> given;  ///< what the attention is computed from
};

/// One op on the way from the scores to the weights, and what comes after.
struct Step {
  enum class Kind : uint8_t { scores, add, fill, view, softmax, dropout, reduce };

  Kind kind;
  c10::OperatorHandle op;
  std::shared_ptr<Step> before = nullptr;  ///< whose result the op takes; null for the scores
  std::vector<Given> given = {};           ///< query and transposed key; or the op's other tensor
  std::vector<c10::IValue> others = {};    ///< the op's arguments after these
  std::vector<int64_t> sizes = {};         ///< of the result
  at::ScalarType dtype = at::kFloat;       ///< of the result
  double dropout = 0;                      ///< of a dropout step
  uint64_t dropout_seed = 0;               ///< the same
  Moment moment = {};
  std::shared_ptr<const Answer> answer = nullptr;  ///< of weights, once they are recognised
  at::Tensor value = {};                           ///< once it is computed
  std::vector<std::weak_ptr<Step>> after = {};     ///< steps that take this one's result
};

/// The tensor in the model's hands: the result of the last step.
class DeferredScores : public intercept::DeferredTensor {
 public:
  /// The product of query [N, T, D] and transposed key [N, D, S], if it can be deferred.
  static std::optional<at::Tensor> of(const std::shared_ptr<ScopeHandler>& handler,
                                      const at::Tensor& query, const at::Tensor& transposed_key);

  at::Tensor value() override;
  const OpHandler* owner() const override { return owner_; }
  bool answer(const c10::OperatorHandle& op, torch::jit::Stack& stack) override;

  /// The softmax along `dim`, if it can be deferred.
  std::optional<at::Tensor> softmax(int64_t dim, std::optional<at::ScalarType> dtype);
  /// Dropout of weights, if it can be deferred.
  std::optional<at::Tensor> dropout(double p, bool train);
  /// The product of weights and values [N, S, E], if this is all of an attention that can run sparse.
  std::optional<at::Tensor> times(const at::Tensor& values);

  /// Use `of`.
  DeferredScores(const at::Tensor& like, std::shared_ptr<Step> step,
                 const std::shared_ptr<ScopeHandler>& handler,
                 std::shared_ptr<std::recursive_mutex> mutex);

 private:
  using Result = std::optional<at::Tensor>;

  Result take(const std::string& op_name, const c10::OperatorHandle& op, c10::IValue* arguments);
  Result add(const c10::OperatorHandle& op, c10::IValue* arguments, bool in_place);
  Result masked_fill(const c10::OperatorHandle& op, c10::IValue* arguments);
  Result inner_softmax(const c10::OperatorHandle& op, c10::IValue* arguments);
  Result view(const c10::OperatorHandle& op, c10::IValue* arguments);
  Result sum(const c10::OperatorHandle& op, c10::IValue* arguments);
  Result divide(const c10::OperatorHandle& op, c10::IValue* arguments);

  void left_alone(const std::string& reason);
  at::Tensor self() const;
  bool can_go_on() const;
  Step step_after(Step::Kind kind, const c10::OperatorHandle& op) const;
  at::Tensor next(Step step) const;

  const std::weak_ptr<ScopeHandler> handler_;
  const OpHandler* const owner_;
  const std::shared_ptr<std::recursive_mutex> mutex_;  ///< of all steps of one attention
  std::shared_ptr<Step> step_;
  bool reported_ = false;  ///< as an attention that is left alone
};

}  // namespace torchlore::attention
