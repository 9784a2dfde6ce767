#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>
#include <torch/version.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>

#include "../../src/privacy/per_sample_pass.hpp"
#include "intercept/coverage/modules.hpp"
#include "support/tolerance.hpp"
#include "test_paths.hpp"
#include "torchlore/intercept/op_call.hpp"
#include "torchlore/intercept/op_mode.hpp"
#include "torchlore/intercept/tape.hpp"
#include "torchlore/privacy/per_sample.hpp"

// What OpMode sees and the Tape names of every module of torch::nn: docs/coverage.md. The page is
// written anew by
//   TORCHLORE_WRITE_COVERAGE=1 build/dev/tests/intercept_coverage_test
namespace torchlore {
namespace {

using testing::ModuleCase;

std::string contents(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// The names of the ops that a mode sees, each once, in the order of their first call.
struct Names : OpHandler {
  std::vector<std::string> seen;
  void boxed(OpCall& call) override {
    auto name = call.op().schema().name();
    name = name.substr(name.find("::") + 2);
    if (std::find(seen.begin(), seen.end(), name) == seen.end()) seen.push_back(name);
    call.run();
  }
};

/// What there is to say of one module.
struct Coverage {
  std::vector<std::string> ops;         ///< seen by OpMode
  std::vector<std::string> nodes;       ///< named by the Tape
  std::vector<std::string> unknown;     ///< seen by the Tape, but not known to it
  std::vector<std::string> parameters;  ///< where the Tape finds them used
  std::set<std::string> unused;         ///< parameters that it does not find
};

template <typename T>
void add_once(std::vector<T>& to, const T& item) {
  if (std::find(to.begin(), to.end(), item) == to.end()) to.push_back(item);
}

/// "AddmmBackward0" → "Addmm", "torch::autograd::CopySlices" → "CopySlices".
std::string short_name(std::string node) {
  const std::string space = "torch::autograd::";
  if (node.starts_with(space)) node = node.substr(space.size());
  const auto end = node.rfind("Backward");
  return end == std::string::npos ? node : node.substr(0, end);
}

void describe(const Tape& tape, Coverage& coverage) {
  for (const auto& node : tape.nodes()) {
    if (node.op == TapeOp::leaf) continue;
    add_once(node.op == TapeOp::unknown ? coverage.unknown : coverage.nodes, short_name(node.name));
  }
  for (const auto& parameter : tape.parameters()) {
    if (parameter.name.empty()) continue;
    coverage.unused.erase(parameter.name);
    for (const auto& use : parameter.uses) {
      const auto& node = tape.node(use.node);
      const auto input = std::string(node.inputs[static_cast<size_t>(use.input)].name);
      const auto name = parameter.name.substr(parameter.name.rfind('.') + 1);
      add_once(coverage.parameters, name + " → " + short_name(node.name) + "." + input);
    }
  }
}

/// The losses of the examples of a module's output, which lie in dimension 1 behind sequences.
at::Tensor example_losses(const at::Tensor& output, const std::string& family) {
  const bool is_sequence =
      (family == "Recurrent layers" || family == "Attention") && output.dim() == 3;
  const auto rows = is_sequence ? output.transpose(0, 1) : output;
  const auto weights = at::linspace(0.5, 1.5, rows[0].numel());
  return (rows.reshape({rows.size(0), -1}).sin() * weights).sum(1);
}

/// The losses of a fresh forward, whose inputs want no gradient.
at::Tensor example_losses(testing::BuiltModule& built, const std::string& family) {
  return example_losses(built.forward_of([](const at::Tensor& x) { return x.detach(); }), family);
}

std::string per_sample_of(const ModuleCase& module_case, const std::string& family) {
  auto built = module_case.build();
  if (built.module->parameters().empty()) return "–";
  try {
    detail::PerSamplePass pass(example_losses(built, family),
                               detail::trainable_parameters(*built.module), {},
                               detail::PassPurpose::norms);
    std::string exact;
    for (size_t i = 0; i < pass.size(); ++i) {
      if (pass.is_exact(i)) exact += (exact.empty() ? "" : ", ") + pass.name(i);
    }
    return exact.empty() ? "rules" : "one by one: " + exact;
  } catch (const c10::NotImplementedError&) {
    return "refused";
  }
}

Coverage coverage_of(const ModuleCase& module_case) {
  auto built = module_case.build();
  Coverage coverage;
  for (const auto& item : built.module->named_parameters()) coverage.unused.insert(item.key());
  Names names;
  at::Tensor output;
  {
    const OpMode mode(names);
    output = built.forward();
  }
  coverage.ops = names.seen;
  if (output.grad_fn() != nullptr) describe(Tape::of(output, *built.module), coverage);
  return coverage;
}

std::string joined(const std::vector<std::string>& items) {
  std::string text;
  for (const auto& item : items) text += (text.empty() ? "" : ", ") + item;
  return text.empty() ? "–" : text;
}

std::string page() {
  std::ostringstream out;
  out << "# Coverage\n\nWhat `OpMode` sees and `Tape` names of every module of `torch::nn`, in "
         "training mode, in float32 on the CPU,\nwith LibTorch "
      << TORCH_VERSION_MAJOR << '.' << TORCH_VERSION_MINOR
      << ". Written by `tests/intercept/coverage_test.cpp`.\n\n"
         "- **OpMode**: the ATen ops that a boxed handler sees, in the order of their first call.\n"
         "- **Tape**: autograd's nodes that the tape knows, without \"Backward0\"; then those that "
         "it "
         "only names.\n"
         "- **Parameters**: the op and argument by which the tape finds each one used, behind "
         "views "
         "and casts.\n"
         "- **Per-sample**: how `per_sample_norms` and its like get the gradients of single "
         "examples: by the rules of\n  the ops; one by one, by a backward for each example, for "
         "the "
         "parameters named; or refused, because the\n  module mixes the examples, or picks them by "
         "their labels.\n";
  for (const auto& family : testing::module_families()) {
    out << "\n## " << family.name
        << "\n\n| module | OpMode | Tape | Tape, unknown | parameters | per-sample |\n"
           "|---|---|---|---|---|---|\n";
    for (const auto& module_case : family.modules) {
      const auto coverage = coverage_of(module_case);
      out << "| " << module_case.name << " | " << joined(coverage.ops) << " | "
          << joined(coverage.nodes) << " | " << joined(coverage.unknown) << " | "
          << joined(coverage.parameters) << " | " << per_sample_of(module_case, family.name)
          << " |\n";
    }
  }
  return out.str();
}

/// Nodes and ops change with LibTorch's releases and with the processor's kernels.
bool is_the_pages_build() {
#ifdef __x86_64__
  return TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR == 13;
#else
  return false;
#endif
}

TEST(Coverage, ThePageIsCurrent) {
  if (!is_the_pages_build()) GTEST_SKIP() << "the page was written with LibTorch 2.13 on x86-64";
  const std::string path = std::string(TORCHLORE_TEST_DATA) + "/../../../docs/coverage.md";
  const auto current = page();
  if (std::getenv("TORCHLORE_WRITE_COVERAGE") != nullptr) std::ofstream(path) << current;
  EXPECT_EQ(contents(path), current) << "write docs/coverage.md anew, as this file's head says";
}

TEST(Coverage, EveryModuleOfTorchNnIsThere) {
  if (!is_the_pages_build()) GTEST_SKIP() << "other releases have other modules";
  std::set<std::string> wanted{"Sequential", "Embedding", "EmbeddingBag"};  // without the macro
  const std::string folder = TORCHLORE_LIBTORCH_INCLUDE "/torch/csrc/api/include/torch/nn/modules";
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (!entry.is_regular_file()) continue;
    std::ifstream header(entry.path());
    for (std::string line; std::getline(header, line);) {
      const std::string macro = "TORCH_MODULE(";
      if (line.starts_with(macro)) {
        wanted.insert(line.substr(macro.size(), line.find(')') - macro.size()));
      }
    }
  }
  EXPECT_GT(wanted.size(), 100u);
  for (const auto& family : testing::module_families()) {
    for (const auto& module_case : family.modules) {
      wanted.erase(module_case.name.substr(0, module_case.name.find(' ')));
    }
  }
  EXPECT_EQ(wanted, std::set<std::string>{});
}

/// The members of LibTorch's nodes, by the node's name.
std::map<std::string, std::vector<std::string>> members_of_nodes() {
  std::istringstream header(
      contents(TORCHLORE_LIBTORCH_INCLUDE "/torch/csrc/autograd/generated/Functions.h"));
  const std::regex node(R"(^struct TORCH_API (\w+) : public .*)");
  const std::regex member(R"(^  ([\w:<>, ]+) (\w+);$)");
  std::map<std::string, std::vector<std::string>> result;
  std::string current;
  std::smatch found;
  for (std::string line; std::getline(header, line);) {
    if (std::regex_match(line, found, node)) {
      current = found[1];
    } else if (!current.empty() && std::regex_match(line, found, member)) {
      result[current].push_back(found[2]);
    }
  }
  return result;
}

/// What says nothing of the op: layouts, strides, and how autograd keeps its own house.
bool is_left_out(const std::string& member) {
  const std::vector<std::string> ends{"_layout",    "_sym_strides", "_info",      "_geometry",
                                      "_released_", "_size_",       "_argsize_1", "_argsize_2",
                                      "_minus_1",   "_minus_2",     "_sym_numel", "weight_stride0"};
  if (member.starts_with("tensors_args_") || member == "retain_variables") return true;
  if (member.starts_with("batch1_sym") || member.starts_with("tensor1_scalar") ||
      member.starts_with("tensor2_scalar") || member == "masked_grad" || member == "src_info") {
    return true;
  }
  return std::any_of(ends.begin(), ends.end(),
                     [&](const auto& end) { return member.ends_with(end); });
}

TEST(Coverage, EveryMemberOfAKnownNodeIsRead) {
  if (!is_the_pages_build()) GTEST_SKIP() << "other releases have other members";
  const std::string sources = std::string(TORCHLORE_TEST_DATA) + "/../../../src/intercept/";
  const auto fields = contents(sources + "tape_fields.hpp");
  const auto known =
      contents(sources + "tape_layer_readers.cpp") + contents(sources + "tape_other_readers.cpp");
  size_t nodes = 0;
  for (const auto& [node, members] : members_of_nodes()) {
    if (!std::regex_search(known, std::regex("\\b" + node + "\\b"))) continue;
    ++nodes;
    for (const auto& member : members) {
      const bool is_read = fields.find("FIELD(" + member + ",") != std::string::npos;
      EXPECT_NE(is_read, is_left_out(member)) << node << "::" << member;
    }
  }
  EXPECT_GT(nodes, 250u);
}

/// Gradients that the tape gives for the leaves, and those that backward writes, from 1 everywhere.
void expect_backwards_gradients(const Tape& tape, const at::Tensor& output) {
  const auto ones = at::ones_like(output);
  std::vector<TapeValue> leaves;
  for (const auto& parameter : tape.parameters()) leaves.push_back({parameter.node});
  const auto found = tape.output_gradients(leaves, {.loss_gradient = ones});
  output.backward(ones);
  for (size_t i = 0; i < found.size(); ++i) {
    const auto& written = tape.parameters()[i].tensor.grad();
    ASSERT_EQ(found[i].defined(), written.defined());
    if (written.defined()) {
      EXPECT_TRUE(testing::same(found[i], written)) << i;
    }
  }
}

TEST(Coverage, TapesOfAllModulesHoldTogether) {
  at::set_num_threads(1);
  for (const auto& family : testing::module_families()) {
    for (const auto& module_case : family.modules) {
      SCOPED_TRACE(module_case.name);
      const auto built = module_case.build();
      const auto output = built.forward();
      if (output.grad_fn() == nullptr) continue;  // Identity
      const auto tape = Tape::of(output, *built.module);
      const auto& last = tape.node(tape.loss().node).outputs;
      const auto& shape = last[static_cast<size_t>(tape.loss().output)];
      EXPECT_EQ(at::IntArrayRef(shape.sizes), output.sizes());
      EXPECT_EQ(shape.dtype, output.scalar_type());
      for (const auto& node : tape.nodes()) {
        for (const auto& input : node.inputs) {
          EXPECT_EQ(input.name.empty(), node.op == TapeOp::unknown) << node.name;
          if (input.producer.node < 0) continue;
          const auto& producer = tape.node(input.producer.node);
          EXPECT_LT(input.producer.output, static_cast<int64_t>(producer.outputs.size()));
          EXPECT_LT(producer.index, node.index);
        }
      }
      const auto bare = Tape::of(output, *built.module, {.keep = TapeKeep::structure});
      std::ostringstream text, bare_text;
      text << tape;
      bare_text << bare;
      EXPECT_EQ(text.str(), bare_text.str());
      expect_backwards_gradients(tape, output);
    }
  }
}

TEST(Coverage, EveryParameterIsFoundAndEveryOpSeen) {
  for (const auto& family : testing::module_families()) {
    for (const auto& module_case : family.modules) {
      SCOPED_TRACE(module_case.name);
      const auto coverage = coverage_of(module_case);
      EXPECT_TRUE(coverage.unused.empty()) << *coverage.unused.begin() << " is not found";
      const bool does_nothing = module_case.name == "Identity";
      EXPECT_EQ(coverage.ops.empty(), does_nothing);
      EXPECT_EQ(coverage.nodes.empty() && coverage.unknown.empty(), does_nothing);
    }
  }
}

/// The gradients of single losses, by LibTorch's own backward.
void expect_backwards_examples(testing::BuiltModule& built, const at::Tensor& losses) {
  const auto found = per_sample_grads(losses, *built.module);
  for (int64_t e = 0; e < losses.numel(); ++e) {
    for (const auto& parameter : built.module->parameters()) parameter.mutable_grad().reset();
    losses[e].backward({}, /*retain_graph=*/true);
    for (const auto& one : found) {
      const auto& expected = one.parameter.grad();
      const double size = expected.defined() ? expected.norm().item<double>() : 0;
      const auto difference = expected.defined() ? one.gradients[e] - expected : one.gradients[e];
      EXPECT_LE(difference.norm().item<double>(), 1e-5 * std::max(size, 0.1))
          << one.name << ' ' << e;
    }
  }
}

TEST(Coverage, SingleExamplesGradientsAreThoseOfTheirLosses) {
  for (const auto& family : testing::module_families()) {
    for (const auto& module_case : family.modules) {
      SCOPED_TRACE(module_case.name);
      const auto how = per_sample_of(module_case, family.name);
      if (how == "–" || how == "refused") {
        // The second one computes clusters of examples, chosen by their labels.
        EXPECT_EQ(how == "refused", module_case.name.starts_with("BatchNorm") ||
                                        module_case.name == "AdaptiveLogSoftmaxWithLoss");
        continue;
      }
      auto built = module_case.build();
      expect_backwards_examples(built, example_losses(built, family.name));
    }
  }
}

}  // namespace
}  // namespace torchlore
