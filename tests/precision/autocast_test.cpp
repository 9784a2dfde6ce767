#include "torchlore/precision/autocast.hpp"

#include <ATen/Functions.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>
#include <torch/version.h>

#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "support/message.hpp"
#include "support/warnings.hpp"
#include "test_paths.hpp"

namespace torchlore {
namespace {

using testing::CollectWarnings;

bool enabled() { return at::autocast::is_autocast_enabled(at::kCPU); }

at::ScalarType product_dtype(at::ScalarType input = at::kFloat) {
  const auto x = at::ones({2, 2}, input);
  return at::mm(x, x).scalar_type();
}

TEST(Autocast, RunsMatrixProductsInTheDtypeOfTheScope) {
  EXPECT_EQ(product_dtype(), at::kFloat);
  {
    const Autocast amp(at::kCPU);
    EXPECT_EQ(product_dtype(), at::kBFloat16);
    EXPECT_EQ(product_dtype(at::kDouble), at::kDouble);
  }
  {
    const Autocast amp(at::Device("cpu"), at::kHalf);
    EXPECT_EQ(product_dtype(), at::kHalf);
  }
  EXPECT_EQ(product_dtype(), at::kFloat);
}

TEST(Autocast, RestoresWhatItFoundWhenNested) {
  const auto default_dtype = at::autocast::get_autocast_dtype(at::kCPU);
  {
    const Autocast outer(at::kCPU, at::kHalf);
    {
      const Autocast inner(at::kCPU, at::kBFloat16, {.cache = false});
      EXPECT_EQ(product_dtype(), at::kBFloat16);
      EXPECT_FALSE(at::autocast::is_autocast_cache_enabled());
      {
        const Autocast off(at::kCPU, std::nullopt, {.enabled = false});
        EXPECT_EQ(product_dtype(), at::kFloat);
      }
      EXPECT_EQ(product_dtype(), at::kBFloat16);
    }
    EXPECT_EQ(product_dtype(), at::kHalf);
    EXPECT_TRUE(at::autocast::is_autocast_cache_enabled());
  }
  EXPECT_FALSE(enabled());
  EXPECT_EQ(at::autocast::get_autocast_dtype(at::kCPU), default_dtype);
}

TEST(Autocast, DevicesAreApart) {
  const Autocast cuda(at::kCUDA);
  EXPECT_EQ(at::autocast::get_autocast_dtype(at::kCUDA), at::kHalf);
  EXPECT_EQ(product_dtype(), at::kFloat);
  const Autocast cpu(at::kCPU);
  EXPECT_EQ(product_dtype(), at::kBFloat16);
  EXPECT_TRUE(at::autocast::is_autocast_enabled(at::kCUDA));
}

TEST(Autocast, EndsWhenAnExceptionPasses) {
  EXPECT_THROW(
      {
        const Autocast amp(at::kCPU);
        throw std::runtime_error("from the forward");
      },
      std::runtime_error);
  EXPECT_FALSE(enabled());
}

TEST(Autocast, EmptiesTheCacheWithTheOutermostScopeOnly) {
  const auto weight = at::ones({2, 2}).requires_grad_(true);
  const auto x = at::ones({2, 2});
  const auto uses_outside = weight.use_count();
  {
    const Autocast outer(at::kCPU);
    at::mm(x, weight);
    const auto uses = weight.use_count();
    { const Autocast inner(at::kCPU); }
    EXPECT_EQ(weight.use_count(), uses);
    EXPECT_GT(uses, uses_outside);
  }
  EXPECT_EQ(weight.use_count(), uses_outside);
  {
    const Autocast amp(at::kCPU, std::nullopt, {.cache = false});
    at::mm(x, weight);
    EXPECT_EQ(weight.use_count(), uses_outside);
  }
}

TEST(Autocast, SeesAChangedParameterInTheNextScope) {
  auto weight = at::ones({2, 2}).requires_grad_(true);
  const auto x = at::ones({2, 2});
  const auto forward = [&] {
    const Autocast amp(at::kCPU);
    return at::mm(x, weight).sum().item<double>();
  };
  EXPECT_EQ(forward(), 8);
  weight.data().mul_(2);
  EXPECT_EQ(forward(), 16);
}

TEST(Autocast, IsUnseenByOtherThreads) {
  const Autocast amp(at::kCPU);
  bool seen = true;
  std::thread([&] { seen = enabled(); }).join();
  EXPECT_FALSE(seen);
}

TEST(Autocast, BackwardRepeatsTheDtypesOfTheForward) {
  const auto weight = at::ones({2, 2}).requires_grad_(true);
  at::Tensor y;
  {
    const Autocast amp(at::kCPU);
    y = at::mm(at::ones({2, 2}), weight);
  }
  y.sum().backward();
  EXPECT_EQ(weight.grad().scalar_type(), at::kFloat);
}

TEST(Autocast, FunctionFormReturnsWhatTheFunctionReturns) {
  EXPECT_EQ(autocast(at::kCPU, at::kHalf, [] { return product_dtype(); }), at::kHalf);
  EXPECT_FALSE(enabled());
  int value = 1;
  int& same = autocast(at::kCPU, std::nullopt, [&]() -> int& { return value; });
  EXPECT_EQ(&same, &value);
}

TEST(Autocast, WarnsWhenDestroyedOnAnotherThreadAndLeavesItAlone) {
  CollectWarnings silent;  // the scope around warns too: the scope inside it never ended here
  const Autocast around(at::kCPU);
  auto scope = std::make_unique<Autocast>(at::kCPU, at::kHalf);
  std::vector<std::string> warnings;
  bool other_enabled = false;
  std::thread([&] {
    CollectWarnings collected;
    const Autocast theirs(at::kCPU);
    scope.reset();
    other_enabled = enabled();
    warnings = collected.texts;
  }).join();
  EXPECT_EQ(warnings,
            std::vector<std::string>{"an Autocast scope was destroyed on another thread than its "
                                     "own, or after the scope around it; autocast is left as it "
                                     "is. End scopes on their thread, innermost first"});
  EXPECT_TRUE(other_enabled);
  EXPECT_TRUE(enabled());
}

TEST(Autocast, WarnsWhenTheOuterScopeEndsFirstAndEndsBoth) {
  CollectWarnings collected;
  auto outer = std::make_unique<Autocast>(at::kCPU);
  auto inner = std::make_unique<Autocast>(at::kCPU, at::kHalf);
  outer.reset();
  EXPECT_EQ(collected.texts,
            std::vector<std::string>{"an Autocast scope was destroyed before a scope inside it; "
                                     "both have ended. End scopes innermost first"});
  EXPECT_FALSE(enabled());
  const Autocast next(at::kCPU);
  inner.reset();
  EXPECT_EQ(collected.texts.size(), 2);
  EXPECT_EQ(product_dtype(), at::kBFloat16);
}

TEST(Autocast, RefusesADtypeItCannotCastTo) {
  EXPECT_EQ(testing::message_of<c10::ValueError>([] { Autocast(at::kCPU, at::kFloat); }),
            "autocast on 'cpu' casts to BFloat16 or Half, but dtype is Float; to compute without "
            "casts leave the scope out, or pass {.enabled = false}");
  EXPECT_EQ(testing::message_of<c10::ValueError>([] { Autocast(at::kCUDA, at::kInt); }),
            "autocast on 'cuda' casts to BFloat16 or Half, but dtype is Int; to compute without "
            "casts leave the scope out, or pass {.enabled = false}");
  EXPECT_FALSE(enabled());
}

TEST(Autocast, RefusesADeviceWithoutAutocast) {
  EXPECT_EQ(testing::message_of<c10::ValueError>([] { Autocast(at::kMeta); }),
            "LibTorch has no autocast for the device 'meta'; pass the device that the model runs "
            "on, such as at::kCPU or at::kCUDA");
}

/// Makes the arguments that tests/oracles/autocast_table.py describes, for a boxed call.
class Arguments {
 public:
  Arguments(at::ScalarType first, at::ScalarType others) : first_(first), others_(others) {}

  c10::IValue make(const std::string& text) {
    const char kind = text[0];
    const auto value = text.substr(text.find(':') + 1);
    if (text == "none:") return {};
    if (kind == 'F' || kind == 'I') return tensors(kind == 'F' ? 'f' : 'i', value);
    if (kind == 'n') return int64_t{std::stoll(value)};
    if (kind == 'd') return std::stod(value);
    if (kind == 'b') return value == "1";
    if (kind == 's') return value;
    if (kind == 'l') return c10::IValue(integers(value));
    return tensor(kind, integers(value));
  }

 private:
  static std::vector<int64_t> integers(const std::string& text) {
    std::vector<int64_t> result;
    std::istringstream in(text);
    for (std::string item; std::getline(in, item, ',');) result.push_back(std::stoll(item));
    return result;
  }

  at::ScalarType dtype() { return std::exchange(first_, others_); }

  at::Tensor tensor(char kind, const std::vector<int64_t>& shape) {
    if (kind == 'i') return at::zeros(shape, at::kLong);
    if (kind == 'm') return at::zeros(shape, at::kBool);
    const auto value = kind == 'e' ? 2 * at::eye(shape[0]) : at::full(shape, 0.5);
    return value.to(dtype());
  }

  c10::IValue tensors(char kind, const std::string& text) {
    std::vector<at::Tensor> result;
    std::istringstream in(text);
    for (std::string item; std::getline(in, item, ';');) {
      result.push_back(tensor(kind, integers(item)));
    }
    if (kind == 'f') return result;
    c10::List<std::optional<at::Tensor>> indices;
    for (const auto& index : result) indices.push_back(index);
    return indices;
  }

  at::ScalarType first_;
  at::ScalarType others_;
};

at::ScalarType dtype_of(const std::string& name) {
  const std::map<std::string, at::ScalarType> dtypes{
      {"f32", at::kFloat},        {"bf16", at::kBFloat16},     {"f16", at::kHalf},
      {"f64", at::kDouble},       {"i64", at::kLong},          {"bool", at::kBool},
      {"c64", at::kComplexFloat}, {"c128", at::kComplexDouble}};
  return dtypes.at(name);
}

/// Calls an op of the dispatcher by name; returns its first output.
at::Tensor call(const std::string& op, std::vector<c10::IValue> stack) {
  const auto dot = op.find('.');
  const auto overload = dot == std::string::npos ? "" : op.substr(dot + 1);
  const auto handle = c10::Dispatcher::singleton().findSchemaOrThrow(
      ("aten::" + op.substr(0, dot)).c_str(), overload.c_str());
  const auto& declared = handle.schema().arguments();
  for (size_t i = stack.size(); i < declared.size(); ++i) {
    stack.push_back(declared[i].default_value().value_or(c10::IValue()));
  }
  for (size_t i = 0; i < stack.size(); ++i) {
    // As Python's binding does, an int is taken where a float is declared.
    if (declared[i].type()->kind() == c10::TypeKind::FloatType && stack[i].isInt()) {
      stack[i] = static_cast<double>(stack[i].toInt());
    }
  }
  handle.callBoxed(stack);
  return stack.front().isTensorList() ? stack.front().toTensorVector().front()
                                      : stack.front().toTensor();
}

/// One line of the table; returns the dtype that the op gave, or "error".
std::string run_line(const std::vector<std::string>& words) {
  const size_t inputs = words.size() - 4;
  Arguments arguments(dtype_of(words[inputs + 1]), dtype_of(words[inputs + 2]));
  std::vector<c10::IValue> stack;
  for (size_t i = 1; i < inputs; ++i) stack.push_back(arguments.make(words[i]));
  const Autocast amp(at::kCPU, dtype_of(words[inputs]));
  try {
    return at::toString(call(words[0], std::move(stack)).scalar_type());
  } catch (const c10::Error&) {
    return "error";
  }
}

TEST(Autocast, OutputDtypesEqualPythons) {
  std::ifstream file(TORCHLORE_TEST_DATA "/autocast_table.txt");
  std::string line;
  ASSERT_TRUE(std::getline(file, line));
  const auto version =
      std::to_string(TORCH_VERSION_MAJOR) + "." + std::to_string(TORCH_VERSION_MINOR);
  if (line != version)
    GTEST_SKIP() << "the table is of LibTorch " << line << ", this is " << version;
  const CollectWarnings silent;
  int64_t lines = 0;
  for (; std::getline(file, line); ++lines) {
    std::istringstream in(line);
    const std::vector<std::string> words{std::istream_iterator<std::string>(in), {}};
    const auto expected = words.back() == "error" ? "error" : at::toString(dtype_of(words.back()));
    EXPECT_EQ(run_line(words), expected) << line;
  }
  EXPECT_GT(lines, 1000);
}

}  // namespace
}  // namespace torchlore
