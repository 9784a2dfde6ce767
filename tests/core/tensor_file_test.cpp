#include "torchlore/core/tensor_file.hpp"

#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

#include "support/temporary_folder.hpp"

namespace torchlore {
namespace {

namespace fs = std::filesystem;
using testing::TemporaryFolder;

const fs::path kGolden = fs::path(TORCHLORE_TEST_DATA) / "tensor_file";

/// The dtypes of tests/oracles/tensor_file_oracle.py, which made the golden files.
const std::vector<std::pair<std::string, at::ScalarType>> kDtypes = {
    {"BOOL", at::kBool},
    {"U8", at::kByte},
    {"I8", at::kChar},
    {"F8_E5M2", at::kFloat8_e5m2},
    {"F8_E4M3", at::kFloat8_e4m3fn},
    {"F8_E8M0", at::ScalarType::Float8_e8m0fnu},
    {"F8_E4M3FNUZ", at::kFloat8_e4m3fnuz},
    {"F8_E5M2FNUZ", at::kFloat8_e5m2fnuz},
    {"I16", at::kShort},
    {"U16", at::kUInt16},
    {"F16", at::kHalf},
    {"BF16", at::kBFloat16},
    {"I32", at::kInt},
    {"U32", at::kUInt32},
    {"F32", at::kFloat},
    {"C64", at::kComplexFloat},
    {"F64", at::kDouble},
    {"I64", at::kLong},
    {"U64", at::kUInt64},
};

/// The oracle's pattern of bytes as a tensor.
at::Tensor pattern(at::ScalarType dtype, at::IntArrayRef shape) {
  auto tensor = at::empty(shape, dtype);
  auto* bytes = static_cast<unsigned char*>(tensor.data_ptr());
  for (size_t i = 0; i < tensor.nbytes(); ++i) {
    bytes[i] = static_cast<unsigned char>(dtype == at::kBool ? i % 2 : (7 * i + 3) % 251);
  }
  return tensor;
}

/// The oracle's tensors.
StateDict golden_tensors() {
  StateDict result;
  for (const auto& [format, dtype] : kDtypes) {
    std::string name = format;
    for (char& c : name) c = static_cast<char>(std::tolower(c));
    result[name] = pattern(dtype, {2, 3});
    result[name + "/scalar"] = pattern(dtype, {});
    result[name + "/empty"] = pattern(dtype, {0, 3});
  }
  result["f4"] = at::arange(6, at::kByte).view({2, 3}).view(at::ScalarType::Float4_e2m1fn_x2);
  result["name é中\n\"\\"] = pattern(at::kFloat, {1, 1, 1});
  return result;
}

const Metadata kGoldenMetadata = {{"format", "pt é\n\t\"\\/\x01\x7f"}};

std::string bytes_of(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

std::string raw(const at::Tensor& tensor) {
  const auto dense = tensor.contiguous();
  return {static_cast<const char*>(dense.const_data_ptr()), dense.nbytes()};
}

TEST(TensorFile, ReadsEveryDtypeThatPythonWrote) {
  const auto file = TensorFile::open(kGolden / "all_dtypes.safetensors");
  const auto expected = golden_tensors();
  EXPECT_EQ(file.infos().size(), expected.size());
  EXPECT_EQ(file.metadata(), kGoldenMetadata);
  for (const auto& [name, tensor] : expected) {
    const auto found = file.tensor(name);
    EXPECT_EQ(found.scalar_type(), tensor.scalar_type()) << name;
    EXPECT_EQ(found.sizes(), tensor.sizes()) << name;
    EXPECT_EQ(raw(found), raw(tensor)) << name;
  }
  EXPECT_EQ(file.tensors().size(), expected.size());
}

TEST(TensorFile, WritesTheBytesThatPythonWrites) {
  const TemporaryFolder folder;
  write_tensors(folder / "ours", golden_tensors(), kGoldenMetadata);
  EXPECT_EQ(bytes_of(folder / "ours"), bytes_of(kGolden / "all_dtypes.safetensors"));
  write_tensors(folder / "nothing", {});
  EXPECT_EQ(bytes_of(folder / "nothing"), bytes_of(kGolden / "nothing.safetensors"));
  EXPECT_TRUE(TensorFile::open(folder / "nothing").infos().empty());
}

TEST(TensorFile, TellsWhatTheFileSays) {
  const auto file = TensorFile::open(kGolden / "all_dtypes.safetensors");
  const auto& info = file.infos().at("bf16");
  EXPECT_EQ(info.format_dtype, "BF16");
  EXPECT_EQ(info.dtype, at::kBFloat16);
  EXPECT_EQ(info.shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(info.end - info.begin, 12U);
  EXPECT_TRUE(file.contains("bf16"));
  EXPECT_FALSE(file.contains("bf17"));
}

}  // namespace
}  // namespace torchlore
