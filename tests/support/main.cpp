// The main function of every test program.
#include <ATen/Context.h>
#include <gtest/gtest.h>

namespace {

/// LibTorch seeds its generators at random: a test must not pass on most days only.
struct SeedBeforeEachTest : testing::EmptyTestEventListener {
  void OnTestStart(const testing::TestInfo&) override { at::manual_seed(2026); }
};

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  testing::UnitTest::GetInstance()->listeners().Append(new SeedBeforeEachTest);
  return RUN_ALL_TESTS();
}
