#include "torchlore/core/tensor_file.hpp"

#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include "support/files.hpp"
#include "support/message.hpp"
#include "support/temporary_folder.hpp"
#include "support/tolerance.hpp"
#include "test_paths.hpp"

namespace torchlore {
namespace {

namespace fs = std::filesystem;
using testing::bytes_of;
using testing::message_of;
using testing::safetensors_bytes;
using testing::same;
using testing::TemporaryFolder;
using testing::write_bytes;

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

TEST(TensorFile, TensorsAreViewsThatOutliveTheFileObject) {
  const TemporaryFolder folder;
  write_tensors(folder / "f", {{"a", at::arange(1'000)}, {"b", at::ones({10})}});
  at::Tensor a, again;
  {
    const auto file = TensorFile::open(folder / "f");
    a = file.tensor("a");
    again = file.tensor("a");
  }
  EXPECT_EQ(a.data_ptr(), again.data_ptr());
  fs::remove(folder / "f");
  EXPECT_TRUE(same(a, at::arange(1'000)));
}

TEST(TensorFile, WritingToATensorLeavesTheFileAlone) {
  const TemporaryFolder folder;
  write_tensors(folder / "f", {{"a", at::ones({10'000})}});
  const auto before = bytes_of(folder / "f");
  const auto file = TensorFile::open(folder / "f");
  file.tensor("a").mul_(2);
  EXPECT_EQ(bytes_of(folder / "f"), before);
  EXPECT_TRUE(same(file.tensor("a"), at::full({10'000}, 2.0F)));  // one mapping, so seen by both
  EXPECT_TRUE(same(TensorFile::open(folder / "f").tensor("a"), at::ones({10'000})));
}

TEST(TensorFile, CopiesWhatIsNotAlignedInTheFile) {
  const TemporaryFolder folder;
  const auto values = at::arange(4, at::kDouble);
  const std::string header = R"({"x":{"dtype":"F64","shape":[4],"data_offsets":[0,32]}})";
  for (size_t padding = 0; padding < 8; ++padding) {
    write_bytes(folder / "f", safetensors_bytes(header + std::string(padding, ' '), raw(values)));
    const auto file = TensorFile::open(folder / "f");
    const auto tensor = file.tensor("x");
    EXPECT_TRUE(same(tensor, values));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 8, 0U);
    const bool aligned = (8 + header.size() + padding) % 8 == 0;
    EXPECT_EQ(file.tensor("x").data_ptr() == tensor.data_ptr(), aligned);
  }
}

TEST(TensorFile, ReadsTensorsInAnyOrderAndEmptyOnesAnywhere) {
  const TemporaryFolder folder;
  write_bytes(folder / "f",
              safetensors_bytes(R"({"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]},
      "none":{"dtype":"F32","shape":[0,9],"data_offsets":[1,1]},
      "a":{"data_offsets":[0,1],"shape":[1],"dtype":"U8"}} )",
                                "\1\2\3"));
  const auto file = TensorFile::open(folder / "f");
  EXPECT_TRUE(same(file.tensor("a"), at::full({1}, 1, at::kByte)));
  EXPECT_TRUE(same(file.tensor("b"), at::arange(2, 4, at::kByte)));
  EXPECT_EQ(file.tensor("none").sizes(), (at::IntArrayRef{0, 9}));
}

TEST(TensorFile, ListsDtypesThatLibTorchLacksButCannotMakeThem) {
  const TemporaryFolder folder;
  const auto path = (folder / "f").string();
  write_bytes(folder / "f",
              safetensors_bytes(R"({"six":{"dtype":"F6_E2M3","shape":[2,2],"data_offsets":[0,3]},)"
                                R"("odd":{"dtype":"F4","shape":[2,1],"data_offsets":[3,4]}})",
                                "abcd"));
  const auto file = TensorFile::open(folder / "f");
  EXPECT_EQ(file.infos().at("six").format_dtype, "F6_E2M3");
  EXPECT_EQ(file.infos().at("six").dtype, at::ScalarType::Undefined);
  EXPECT_EQ(message_of<c10::NotImplementedError>([&] { file.tensor("six"); }),
            "tensor 'six' of '" + path + "' has dtype F6_E2M3, for which LibTorch has none");
  EXPECT_EQ(message_of<c10::NotImplementedError>([&] { file.tensor("odd"); }),
            "tensor 'odd' of '" + path +
                "' has an odd last dimension of dtype F4 (1), which LibTorch holds in pairs only");
}

TEST(TensorFile, SaysWhatIsNotThere) {
  const TemporaryFolder folder;
  const auto path = (folder / "f").string();
  write_tensors(path, {{"a", at::ones({1})}});
  EXPECT_EQ(message_of<c10::ValueError>([&] { TensorFile::open(path).tensor("b"); }),
            "'" + path + "' has no tensor 'b'; infos() lists the 1 it has");
  const auto missing = (folder / "missing").string();
  EXPECT_EQ(message_of([&] { TensorFile::open(missing); }),
            "cannot open '" + missing + "': No such file or directory");
  EXPECT_EQ(message_of([&] { TensorFile::open(folder.path()); }),
            "cannot read '" + folder.path().string() + "': it is a directory");
  EXPECT_EQ(message_of([&] { TensorFile::open("/dev/null"); }),
            "cannot read '/dev/null': it is not a regular file");
}

TEST(TensorFile, RefusesABoolThatIsNeither) {
  const TemporaryFolder folder;
  const auto path = (folder / "f").string();
  write_bytes(path, safetensors_bytes(R"({"b":{"dtype":"BOOL","shape":[3],"data_offsets":[0,3]}})",
                                      std::string("\0\1\2", 3)));
  const auto file = TensorFile::open(path);
  EXPECT_EQ(message_of<c10::ValueError>([&] { file.tensor("b"); }),
            "tensor 'b' of '" + path + "' is BOOL but holds bytes other than 0 and 1");
}

}  // namespace
}  // namespace torchlore
