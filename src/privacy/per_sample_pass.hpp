#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "example_sites.hpp"
#include "torchlore/privacy/per_sample.hpp"

/// One backward that yields what is wanted of single examples' gradients.
namespace torchlore::detail {

/// What a pass is for: what is formed, and what is kept until the end.
enum class PassPurpose : uint8_t { norms, gradients, sum };

/// A model's trainable parameters with their names, each once, in the model's order.
Tape::NamedParameters trainable_parameters(const torch::nn::Module& model);

class PerSamplePass {
 public:
  /// Checks the losses, reads the graph and finds the rules. Changes nothing.
  PerSamplePass(at::Tensor losses, const Tape::NamedParameters& parameters,
                const PerSampleOptions& options, PassPurpose purpose);
  PerSamplePass(const PerSamplePass&) = delete;
  PerSamplePass& operator=(const PerSamplePass&) = delete;
  PerSamplePass(PerSamplePass&&) = delete;
  PerSamplePass& operator=(PerSamplePass&&) = delete;
  ~PerSamplePass() = default;

  /// The backward. The purpose `sum` uses the graph up.
  void run();

  /// @throws c10::ValueError for parameters whose `.grad` no sum can be added to.
  void check_gradients() const;

  int64_t examples() const { return losses_.numel(); }
  /// Of the squares.
  at::TensorOptions options() const { return losses_.options().dtype(at::kDouble); }
  /// How many of the parameters the losses depend on.
  size_t size() const { return states_.size(); }
  const std::string& name(size_t i) const { return states_[i].name; }
  const at::Tensor& parameter(size_t i) const { return states_[i].tensor; }
  /// Whether no rule serves it, so that one backward for each example is run.
  bool is_exact(size_t i) const { return states_[i].is_exact; }

  /// Squared norms of the examples' gradients by one parameter [B] float64.
  const at::Tensor& squares(size_t i) const { return states_[i].squares; }
  /// Purpose `gradients`: [B, *shape of the parameter].
  at::Tensor gradients(size_t i) const;
  /// Purpose `sum`: whether the gradients were formed, and wait for their factors.
  bool is_kept(size_t i) const { return states_[i].kept.defined(); }
  /// Purpose `sum`: leaves examples out.
  void drop(const at::Tensor& dropped);
  /// Purpose `sum`: Σᵢ factorsᵢ·gᵢ, in the parameter's shape and dtype; once for each parameter, what
  /// it was made of is let go. @param factors [B] float64.
  at::Tensor weighted_sum(size_t i, const at::Tensor& factors);

 private:
  /// A slot of a site.
  struct Use {
    size_t site = 0;
    size_t slot = 0;
  };
  struct Site {
    ExampleSite at = {};
    int64_t sums_left = 0;                 // that the rule will make
    std::vector<at::Tensor> outputs = {};  // gradients of an op with several outputs
  };
  struct State {
    std::string name = {};
    at::Tensor tensor = {};
    const TapeParameter* leaf = nullptr;
    std::vector<Use> uses = {};
    bool is_exact = false;     // no rule: one backward for each example
    bool is_summed = false;    // over several uses: formed in the parameter's shape
    at::Tensor kept = {};      // [B, …] of the parameter, or of its only slot
    bool is_kept_own = false;  // shared with no gradient
    at::Tensor squares = {};   // [B] float64
  };

  void check_leaves(const Tape::NamedParameters& parameters);
  void find_sites();
  const ParameterPath& path_of(const Use& use) const;
  void run_exact();
  void run_rules();
  void measure_slots(Site& site);
  void arrive_at_slot(Site& site, size_t slot);
  void measure(State& state, Site& site, size_t slot);
  bool is_to_be_kept(const RuleCost& cost, double elements);
  void let_go(Site& site);

  at::Tensor losses_;
  PerSampleOptions options_;
  PassPurpose purpose_;
  Tape tape_;
  std::vector<State> states_;
  std::vector<Site> sites_;
  double kept_bytes_ = 0;
};

}  // namespace torchlore::detail
