// Writing: whole or not at all, whatever happens.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <thread>

#include "support/files.hpp"
#include "support/message.hpp"
#include "support/temporary_folder.hpp"
#include "support/tolerance.hpp"
#include "torchlore/core/philox.hpp"
#include "torchlore/core/tensor_file.hpp"

namespace torchlore {
namespace {

namespace fs = std::filesystem;
using testing::bytes_of;
using testing::message_of;
using testing::same;
using testing::TemporaryFolder;
using testing::write_bytes;

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) {
    names.push_back(entry.path().filename().string());
  }
  return names;
}

using Names = std::vector<std::string>;

TEST(WriteTensors, AnyStridesAndViews) {
  const TemporaryFolder folder;
  const auto base = at::arange(24, at::kFloat).view({4, 6});
  const auto complex = at::complex(base, base + 1);
  const StateDict tensors = {
      {"transposed", base.t()},
      {"strided", base.slice(1, 1, 6, 2)},
      {"expanded", base.select(0, 1).expand({3, 6})},
      {"conjugated", complex.conj()},
      {"negative", at::imag(complex.conj())},
      {"parameter", base.clone().requires_grad_()},
      {"offset", base.select(0, 3)},
  };
  write_tensors(folder / "f", tensors);
  const auto read = TensorFile::open(folder / "f").tensors();
  ASSERT_EQ(read.size(), tensors.size());
  for (const auto& [name, tensor] : tensors) EXPECT_TRUE(same(read.at(name), tensor)) << name;
}

TEST(WriteTensors, AlignsEveryTensor) {
  const TemporaryFolder folder;
  const StateDict tensors = {{"a", at::ones({3}, at::kByte)},
                             {"b", at::ones({1}, at::kDouble)},
                             {"c", at::ones({1}, at::kHalf)},
                             {"d", at::ones({3}, at::kFloat)}};
  write_tensors(folder / "f", tensors, {{"odd", "length"}});
  const auto file = TensorFile::open(folder / "f");
  for (const auto& [name, tensor] : tensors) {
    EXPECT_EQ(file.tensor(name).data_ptr(), file.tensor(name).data_ptr()) << name;  // no copies
  }
}

TEST(WriteTensors, ReplacesTheFileThatItsTensorsComeFrom) {
  const TemporaryFolder folder;
  const auto values = at::arange(50'000, at::kDouble);
  write_tensors(folder / "f", {{"a", values}, {"b", values + 1}});
  const auto old = TensorFile::open(folder / "f").tensors();
  write_tensors(folder / "f", {{"swapped", old.at("b")}, {"reversed", old.at("a").flip(0)}});
  const auto read = TensorFile::open(folder / "f").tensors();
  EXPECT_TRUE(same(read.at("swapped"), values + 1));
  EXPECT_TRUE(same(read.at("reversed"), values.flip(0)));
  EXPECT_TRUE(same(old.at("a"), values));  // still the old file
  EXPECT_EQ(names_in(folder.path()), Names{"f"});
}

TEST(WriteTensors, ReplacesASymbolicLinkAndWritesRelativePaths) {
  const TemporaryFolder folder;
  write_bytes(folder / "target", "kept");
  fs::create_symlink("target", folder / "link");
  write_tensors(folder / "link", {});
  EXPECT_EQ(bytes_of(folder / "target"), "kept");
  EXPECT_FALSE(fs::is_symlink(folder / "link"));

  const auto before = fs::current_path();
  fs::current_path(folder.path());
  EXPECT_NO_THROW(write_tensors("relative", {}));
  fs::current_path(before);
  EXPECT_TRUE(fs::exists(folder / "relative"));
}

TEST(WriteTensors, WritesTheLongestNameThatAFolderHolds) {
  const TemporaryFolder folder;
  const std::string longest(255, 'n');
  write_tensors(folder / longest, {{"a", at::ones({1})}});
  EXPECT_EQ(names_in(folder.path()), Names{longest});
}

TEST(WriteTensors, RefusesWhatTheFormatLacksBeforeItWrites) {
  const TemporaryFolder folder;
  const auto path = folder / "f";
  write_bytes(path, "old");
  const auto ok = at::ones({1});
  const auto refused = [&]<typename Error>(Error*, const StateDict& tensors,
                                           const Metadata& m = {}) {
    return message_of<Error>([&] { write_tensors(path, tensors, m); });
  };
  constexpr c10::ValueError* kValue = nullptr;
  constexpr c10::TypeError* kType = nullptr;
  EXPECT_EQ(refused(kType, {{"a", at::ones({1}, at::kComplexDouble)}}),
            "tensor 'a' has dtype ComplexDouble, which safetensors files lack; convert it first");
  EXPECT_EQ(refused(kType, {{"a", ok.to_sparse()}}),
            "tensor 'a' is not dense; write tensor.to_dense(), or its parts");
  EXPECT_EQ(refused(kValue, {{"a", at::ones({1}, at::TensorOptions(at::kMeta))}}),
            "tensor 'a' is on the meta device and has no data");
  EXPECT_EQ(refused(kValue, {{"a", at::Tensor()}}), "tensor 'a' is undefined");
  EXPECT_EQ(refused(kValue, {{"__metadata__", ok}}),
            "a tensor cannot be named '__metadata__': the format keeps this name for the metadata");
  EXPECT_EQ(refused(kValue, {{"a\xff", ok}}),
            "the name of a tensor must be valid UTF-8, but is 'a\xff'");
  EXPECT_EQ(refused(kValue, {}, {{"k\xff", ""}}),
            "a key of the metadata must be valid UTF-8, but is 'k\xff'");
  EXPECT_EQ(refused(kValue, {}, {{"k", "v\xff"}}),
            "the metadata's text must be valid UTF-8, but is 'v\xff'");
  EXPECT_EQ(
      refused(kValue, {{"a", at::ones({}, at::kByte).view(at::ScalarType::Float4_e2m1fn_x2)}}),
      "tensor 'a' holds a pair of 4-bit numbers and must have a dimension");
  EXPECT_EQ(refused(kValue, {}, {{"k", std::string(100'000'000, 'v')}}),
            "the names, shapes and metadata take 100000001 bytes, more than the 100000000 a "
            "safetensors header may have");
  EXPECT_EQ(bytes_of(path), "old");
  EXPECT_EQ(names_in(folder.path()), Names{"f"});
}

TEST(WriteTensors, SaysWhereItCannotWrite) {
  const TemporaryFolder folder;
  const auto said = [](const fs::path& path) {
    return message_of([&] { write_tensors(path, {}); });
  };
  const auto missing = folder / "missing" / "f";
  EXPECT_EQ(said(missing), "cannot write '" + missing.string() +
                               "': creating a temporary file beside it failed: No such file or "
                               "directory");
  EXPECT_EQ(said(folder.path()),
            "cannot write '" + folder.path().string() + "': it is a directory");
  EXPECT_EQ(said(""), "cannot write '': it is not the name of a file");
  EXPECT_TRUE(names_in(folder.path()).empty());
}

/// Expects that a write to `path` fails for this reason and leaves an old file as it was.
void expect_failed_write(const fs::path& path, const std::string& reason) {
  const auto large = at::zeros({1'000'000});
  write_tensors(path, {{"old", at::ones({10})}});
  const auto before = bytes_of(path);
  EXPECT_EQ(message_of([&] {
              write_tensors(path, {{"new", large}});
            }),
            "cannot write '" + path.string() + "': writing its data failed: " + reason);
  EXPECT_EQ(bytes_of(path), before);
  EXPECT_EQ(names_in(path.parent_path()), Names{path.filename().string()});
}

TEST(WriteTensors, AFullDiskLeavesTheOldFile) {
  const TemporaryFolder folder;
  if (::mount("tmpfs", folder.path().c_str(), "tmpfs", 0, "size=256k") != 0) {
    GTEST_SKIP() << "cannot mount a small disk here; AFileSizeLimitLeavesTheOldFile runs instead";
  }
  expect_failed_write(folder / "f", "No space left on device");
  EXPECT_EQ(::umount(folder.path().c_str()), 0);
}

TEST(WriteTensors, AFileSizeLimitLeavesTheOldFile) {
  const TemporaryFolder folder;
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small{256 * 1024, before.rlim_max};
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  expect_failed_write(folder / "f", "File too large");
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
}

TEST(WriteTensors, KeepsOnlyTheLeftoversOfTheLiving) {
  const TemporaryFolder folder;
  write_bytes(folder / ".torchlore-1-0.tmp", "of a killed writer");
  write_bytes(folder / ".torchlore-notes", "somebody's");
  write_bytes(folder / "other.tmp", "somebody's");
  write_tensors(folder / "f", {});
  auto names = names_in(folder.path());
  std::sort(names.begin(), names.end());
  EXPECT_EQ(names, (Names{".torchlore-notes", "f", "other.tmp"}));
}

TEST(WriteTensors, ManyWritersAtOnceDoNotMixTheirFiles) {
  const TemporaryFolder folder;
  const auto write = [&](int64_t who) {
    for (int i = 0; i < 20; ++i) write_tensors(folder / "f", {{"a", at::full({5'000}, who)}});
  };
  std::thread other([&] { write(1); });
  write(2);
  other.join();
  const auto read = TensorFile::open(folder / "f").tensor("a");
  EXPECT_TRUE(at::equal(read, read[0].expand({5'000})));
  EXPECT_EQ(names_in(folder.path()), Names{"f"});
}

// A child process writes two contents in turn and is killed at a random moment: whatever is there
// afterwards must be one of them, whole.
TEST(WriteTensors, AKilledWriterLeavesAWholeFile) {
  const TemporaryFolder folder;
  const StateDict even = {{"a", at::zeros({200'000})}}, odd = {{"a", at::ones({200'000})}};
  write_tensors(folder / "f", even);
  PhiloxEngine random{PhiloxStream(1)};
  for (int round = 0; round < 20; ++round) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      for (int i = 0;; ++i) write_tensors(folder / "f", i % 2 == 0 ? odd : even);
    }
    ::usleep(static_cast<useconds_t>(random.below(5'000)));
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    const auto tensor = TensorFile::open(folder / "f").tensor("a");
    EXPECT_TRUE(at::equal(tensor, tensor[0].expand({200'000})));
  }
  write_tensors(folder / "f", even);
  EXPECT_EQ(names_in(folder.path()), Names{"f"});
}

}  // namespace
}  // namespace torchlore
