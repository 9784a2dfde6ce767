#include "example_sites.hpp"

#include <c10/util/Exception.h>

#include <algorithm>
#include <map>
#include <string>

namespace torchlore::detail {
namespace {

/// Where one parameter is used: by an op, or where it is first copied for each example.
struct Place {
  size_t parameter = 0;
  TapeUse use = {};
  ParameterPath path = {};
};

[[noreturn]] void refuse_mixed(const TapeNode& node, const std::string& parameter) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      false, "the examples cannot be told apart in the gradient by the output of node ", node.index,
      " (", node.name, "), behind '", parameter,
      "': something between it and the losses mixes them, such as statistics of the batch; let "
      "each "
      "loss depend on its own example alone (GroupNorm instead of BatchNorm), or freeze the "
      "parameter");
}

/// Copies of a parameter, among which there may be one for each example.
bool spreads(const TapeNode& node) {
  return node.name == "ExpandBackward0" || node.name == "RepeatBackward0";
}

int64_t tracked_input(const TapeNode& node) {
  const auto found = std::find_if(node.inputs.begin(), node.inputs.end(),
                                  [](const TapeInput& input) { return input.producer.node >= 0; });
  return found - node.inputs.begin();
}

const std::vector<int64_t>& sizes_of(const Tape& tape, const TapeValue& value) {
  return tape.node(value.node).outputs[static_cast<size_t>(value.output)].sizes;
}

/// Whether an op computes with parameters only. An input that is not on the tape may be an example; a
/// factor that leaves a parameter its shape (a mask, a scale) is none; copies of a parameter may have the
/// shape of a batch.
bool computes_with_parameters(const Tape& tape, const TapeNode& node,
                              const std::vector<bool>& is_of_parameters) {
  bool is_whole = true, keeps_shape = true;
  for (const auto& input : node.inputs) {
    if (input.producer.node < 0) {
      is_whole = false;
    } else if (!is_of_parameters[static_cast<size_t>(input.producer.node)]) {
      return false;
    } else if (!node.outputs.empty()) {
      keeps_shape = keeps_shape && sizes_of(tape, input.producer) == node.outputs[0].sizes;
    }
  }
  switch (node.op) {
    case TapeOp::elementwise:
      return is_whole || keeps_shape;
    case TapeOp::view:
      return is_whole && !spreads(node);
    case TapeOp::reduction:
    case TapeOp::softmax:
    case TapeOp::weight_norm:
    case TapeOp::join:
    case TapeOp::padding:
    case TapeOp::mm:
    case TapeOp::addmm:
    case TapeOp::bmm:
    case TapeOp::mv:
    case TapeOp::dot:
      return is_whole;
    default:
      return false;
  }
}

class SiteFinder {
 public:
  SiteFinder(const Tape& tape, const std::vector<const TapeParameter*>& parameters)
      : tape_(tape), parameters_(parameters), is_of_parameters_(tape.nodes().size(), false) {
    for (const auto& node : tape_.nodes()) {
      is_of_parameters_[static_cast<size_t>(node.index)] =
          node.op == TapeOp::leaf || computes_with_parameters(tape_, node, is_of_parameters_);
    }
    result_.is_exact.assign(parameters.size(), false);
  }

  ExampleSites find(const at::Tensor& losses) {
    list_places();
    list_values();
    const auto found = find_layouts(tape_, losses, values_);
    for (size_t i = 0; i < values_.size(); ++i) {
      found_.emplace(std::pair(values_[i].node, values_[i].output), found[i]);
    }
    std::map<int64_t, std::vector<Place>> by_node;
    for (auto& place : places_) {
      move_to_copies(place);
      auto& there = by_node[place.use.node];
      const bool is_new = std::none_of(there.begin(), there.end(), [&](const Place& other) {
        return other.use == place.use && other.parameter == place.parameter;
      });
      if (is_new) there.push_back(place);
    }
    for (const auto& [node, there] : by_node) settle(tape_.node(node), there);
    return std::move(result_);
  }

 private:
  void list_places() {
    for (size_t i = 0; i < parameters_.size(); ++i) {
      for (const auto& use : parameters_[i]->uses) {
        places_.push_back({.parameter = i, .use = use, .path = path_to(tape_, use)});
      }
    }
  }

  /// What is asked of the search: uses, copies on the way there, and who takes what parameters become.
  void list_values() {
    std::map<std::pair<int64_t, int64_t>, bool> wanted;
    const auto add = [&](const TapeValue& value) {
      const auto& output = tape_.node(value.node).outputs[static_cast<size_t>(value.output)];
      if (output.known) wanted[{value.node, value.output}] = true;
    };
    const auto add_outputs = [&](const TapeNode& node) {
      for (size_t i = 0; i < node.outputs.size(); ++i) add({node.index, static_cast<int64_t>(i)});
    };
    for (const auto& place : places_) {
      for (const auto& view : place.path) {
        if (spreads(tape_.node(view.node))) add(view);
      }
      add_outputs(tape_.node(place.use.node));
      add_neighbours(place.use.node, add, 4);
    }
    for (const auto& node : tape_.nodes()) {
      if (is_of_parameters_[static_cast<size_t>(node.index)]) continue;
      const bool takes_one =
          std::any_of(node.inputs.begin(), node.inputs.end(), [&](const auto& in) {
            return in.producer.node >= 0 &&
                   is_of_parameters_[static_cast<size_t>(in.producer.node)] && in.parameter < 0;
          });
      if (takes_one) add_outputs(node);
    }
    for (const auto& [value, unused] : wanted) values_.push_back({value.first, value.second});
  }

  /// Values with the same elements, which may tell where the examples lie when the first does not.
  template <typename Add>
  void add_neighbours(int64_t node, const Add& add, int64_t steps) const {
    if (steps == 0) return;
    for (const auto& use : tape_.node(node).consumers) {
      if (!keeps_order(tape_, use)) continue;
      add(TapeValue{use.node});
      add_neighbours(use.node, add, steps - 1);
    }
  }

  const FoundLayouts& at(const TapeValue& value) const {
    static const FoundLayouts nothing;
    const auto found = found_.find({value.node, value.output});
    return found != found_.end() ? found->second : nothing;
  }

  /// Where the parameter is copied for each example, that is its use.
  void move_to_copies(Place& place) const {
    for (size_t i = 0; i < place.path.size(); ++i) {
      const auto& view = tape_.node(place.path[i].node);
      if (!spreads(view) || at(place.path[i]).layouts.empty()) continue;
      place.use = {view.index, tracked_input(view)};
      place.path.resize(i);
      return;
    }
  }

  const FoundLayouts& first_gradient(const TapeNode& node) const {
    int64_t output = 0;
    const auto last = static_cast<int64_t>(node.outputs.size()) - 1;
    while (output < last && !at({node.index, output}).has_gradient) ++output;
    return at({node.index, output});
  }

  bool has_gradient(const TapeNode& node) const {
    for (size_t i = 0; i < node.outputs.size(); ++i) {
      if (at({node.index, static_cast<int64_t>(i)}).has_gradient) return true;
    }
    return false;
  }

  /// In every output that a gradient arrives at.
  bool keeps_examples_apart(const TapeNode& node) const {
    for (size_t i = 0; i < node.outputs.size(); ++i) {
      const auto& found = at({node.index, static_cast<int64_t>(i)});
      if (found.has_gradient && found.layouts.empty()) return false;
    }
    return true;
  }

  /// All uses at one node.
  void settle(const TapeNode& node, const std::vector<Place>& there) {
    if (!has_gradient(node)) return;
    if (!keeps_examples_apart(node)) {
      const auto& name = parameters_[there[0].parameter]->name;
      if (!is_of_parameters_[static_cast<size_t>(node.index)]) refuse_mixed(node, name);
      check_takers(node, name);
      for (const auto& place : there) result_.is_exact[place.parameter] = true;
      return;
    }
    if (add_site(node, there)) return;
    for (const auto& place :
         there) {  // one by one: a rule for the bias, though none for the weight
      if (there.size() == 1 || !add_site(node, {place})) result_.is_exact[place.parameter] = true;
    }
  }

  /// What is computed from parameters alone must be taken by ops that keep examples apart.
  void check_takers(const TapeNode& from, const std::string& parameter) const {
    std::vector<int64_t> open{from.index};
    std::vector<bool> known(tape_.nodes().size(), false);
    while (!open.empty()) {
      const auto& node = tape_.node(open.back());
      open.pop_back();
      for (const auto& use : node.consumers) {
        const auto& taker = tape_.node(use.node);
        if (known[static_cast<size_t>(use.node)]) continue;
        known[static_cast<size_t>(use.node)] = true;
        if (is_of_parameters_[static_cast<size_t>(use.node)]) {
          open.push_back(use.node);
        } else if (!keeps_examples_apart(taker)) {
          refuse_mixed(taker, parameter);
        }
      }
    }
  }

  bool add_site(const TapeNode& node, const std::vector<Place>& there) {
    ExampleSite site{.rule_site = {.node = &node}};
    for (const auto& place : there) {
      if (!is_known(tape_, place.path)) return false;
      const auto& input = node.inputs[static_cast<size_t>(place.use.input)];
      site.rule_site.slots.push_back({input.name, sizes_of(tape_, input.producer)});
      site.parameters.emplace_back(place.parameter, place.path);
    }
    // Several, where (nearly) all of the gradient is 0: no rule may guess.
    const auto& layouts = first_gradient(node).layouts;
    if (layouts.size() != 1) return false;
    site.rule_site.layout = layouts[0];
    site.rule = make_rule(site.rule_site);
    if (site.rule == nullptr) return false;
    result_.sites.push_back(std::move(site));
    return true;
  }

  const Tape& tape_;
  const std::vector<const TapeParameter*>& parameters_;
  std::vector<bool> is_of_parameters_;  // per node
  std::vector<Place> places_;
  std::vector<TapeValue> values_;
  std::map<std::pair<int64_t, int64_t>, FoundLayouts> found_;
  ExampleSites result_;
};

}  // namespace

ExampleSites find_sites(const Tape& tape, const at::Tensor& losses,
                        const std::vector<const TapeParameter*>& parameters) {
  return SiteFinder(tape, parameters).find(losses);
}

}  // namespace torchlore::detail
