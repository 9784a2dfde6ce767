// Another library that holds a dispatch key which OpMode needs. Each case is a process of its own.
#include <gtest/gtest.h>
#include <torch/library.h>

#include <cstdlib>
#include <iostream>

#include "support/handlers.hpp"
#include "torchlore/intercept/op_mode.hpp"

namespace torchlore {
namespace {

using c10::DispatchKey;
using testing::CountMatmuls;
using testing::multiply;

at::Tensor same(const at::Tensor& a) { return a; }

void take_all_ops(DispatchKey key) {
  static torch::Library library(torch::Library::IMPL, "_", key, __FILE__, __LINE__);
  library.fallback(torch::CppFunction::makeFallthrough());
}

void take_one_op(DispatchKey key) {
  static torch::Library library(torch::Library::IMPL, "aten", key, __FILE__, __LINE__);
  library.impl("relu", &same);
}

/// Tries twice: a refusal leaves nothing behind. Ends the process with 0 if ops still work.
[[noreturn]] void try_modes() {
  CountMatmuls handler;
  for (int i = 0; i < 2; ++i) {
    try {
      const OpMode mode(handler);
      std::cerr << "no error" << '\n';
    } catch (const c10::Error& error) {
      std::cerr << error.what_without_backtrace() << '\n';
    }
  }
  std::_Exit(multiply().item<float>() == 2 && OpModeState::capture().empty() ? 0 : 1);
}

/// What `try_modes` prints, as a regular expression.
std::string refusal(const std::string& key) {
  const std::string once = "torchlore's OpMode needs the dispatch key " + key +
                           ", but another library in this process has registered kernels there; "
                           "use one of the two only\n";
  return "^" + once + once + "$";
}

class TakenKey : public ::testing::TestWithParam<DispatchKey> {
 protected:
  TakenKey() { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

TEST_P(TakenKey, IsNamedWhereAllOpsAreTaken) {
  EXPECT_EXIT((take_all_ops(GetParam()), try_modes()), ::testing::ExitedWithCode(0),
              refusal(c10::toString(GetParam())));
}

TEST_P(TakenKey, IsNamedWhereOneOpIsTaken) {
  EXPECT_EXIT((take_one_op(GetParam()), try_modes()), ::testing::ExitedWithCode(0),
              refusal(c10::toString(GetParam())));
}

INSTANTIATE_TEST_SUITE_P(OpMode, TakenKey,
                         ::testing::Values(DispatchKey::TESTING_ONLY_GenericMode,
                                           DispatchKey::TESTING_ONLY_GenericWrapper));

TEST(FreeKeys, AreTakenByTheFirstModeOnly) {
  CountMatmuls handler;
  for (int i = 0; i < 2; ++i) {
    const OpMode mode(handler);
    multiply();
  }
  EXPECT_EQ(handler.count, 2);
}

}  // namespace
}  // namespace torchlore
