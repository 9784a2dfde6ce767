// Files that are not what they claim: each is refused, with what is wrong.
#include <gtest/gtest.h>

#include <limits>

#include "support/files.hpp"
#include "support/message.hpp"
#include "support/temporary_folder.hpp"
#include "torchlore/core/tensor_file.hpp"

namespace torchlore {
namespace {

using testing::message_of;
using testing::safetensors_bytes;
using testing::TemporaryFolder;
using testing::write_bytes;

/// What is said of a file of these bytes.
std::string refusal(const std::string& bytes) {
  const TemporaryFolder folder;
  const auto path = (folder / "f.safetensors").string();
  write_bytes(path, bytes);
  const auto text = message_of<c10::ValueError>([&] { TensorFile::open(path); });
  const std::string start = "'" + path + "' is not a valid safetensors file: ";
  EXPECT_TRUE(text.starts_with(start)) << text;
  return text.substr(std::min(text.size(), start.size()));
}

std::string refusal(const std::string& header, const std::string& data) {
  return refusal(safetensors_bytes(header, data));
}

/// A header's entry of one U8 tensor.
std::string entry(const std::string& name, int64_t begin, int64_t end) {
  const auto from = std::to_string(begin), to = std::to_string(end);
  return "\"" + name + R"(":{"dtype":"U8","shape":[)" + std::to_string(end - begin) +
         R"(],"data_offsets":[)" + from + "," + to + "]}";
}

/// A header with one tensor "a", of this text.
std::string one(const std::string& tensor) { return R"({"a":{)" + tensor + "}}"; }

TEST(HostileTensorFile, CutOff) {
  EXPECT_EQ(refusal(""), "it holds 0 bytes, fewer than the 8 that give the size of its header");
  EXPECT_EQ(refusal("1234567"),
            "it holds 7 bytes, fewer than the 8 that give the size of its header");
  EXPECT_EQ(refusal(std::string("\2\0\0\0\0\0\0\0{", 9)),
            "its header claims 2 bytes, but only 1 follow: it is cut off");
  EXPECT_EQ(refusal("{" + entry("a", 0, 4) + "}", "123"),
            "tensor 'a' ends at byte 4, but the file holds only 3 bytes of data: it is cut off");
}

TEST(HostileTensorFile, EveryPrefixOfAGoodFile) {
  const auto whole =
      safetensors_bytes("{" + entry("a", 0, 2) + "," + entry("b", 2, 5) + "}", "12345");
  const TemporaryFolder folder;
  write_bytes(folder / "f", whole);
  EXPECT_NO_THROW(TensorFile::open(folder / "f"));
  for (size_t size = 0; size < whole.size(); ++size) {
    write_bytes(folder / "f", whole.substr(0, size));
    EXPECT_THROW(TensorFile::open(folder / "f"), c10::ValueError) << size;
  }
}

TEST(HostileTensorFile, OversizedHeader) {
  EXPECT_EQ(refusal(std::string(8, '\xff') + "{}"),
            "its header claims 18446744073709551615 bytes, more than the 100000000 allowed");
  EXPECT_EQ(refusal(std::string("\x01\xe1\xf5\x05\0\0\0\0", 8) + "{}"),
            "its header claims 100000001 bytes, more than the 100000000 allowed");
  EXPECT_EQ(refusal(std::string("\x00\xe1\xf5\x05\0\0\0\0", 8) + "{}"),
            "its header claims 100000000 bytes, but only 2 follow: it is cut off");
}

TEST(HostileTensorFile, NotJson) {
  EXPECT_EQ(refusal("", ""), "its header does not start with '{'");
  EXPECT_EQ(refusal("[]", ""), "its header does not start with '{'");
  EXPECT_EQ(refusal(" {}", ""), "its header does not start with '{'");
  EXPECT_EQ(refusal("\xef\xbb\xbf{}", ""), "its header does not start with '{'");
  EXPECT_EQ(refusal("{]", ""), "its header is not JSON at byte 2 of it");
  EXPECT_EQ(refusal("{} x", ""), "its header is not JSON at byte 4 of it");
  EXPECT_EQ(refusal("{}{}", ""), "its header is not JSON at byte 3 of it");
  EXPECT_EQ(refusal(std::string("{}\0{}", 5), ""), "its header is not JSON at byte 3 of it");
  EXPECT_EQ(refusal("{" + entry("a", 0, 0), ""), "its header is not JSON at byte 53 of it");
  EXPECT_EQ(refusal("{/* comment */}", ""), "its header is not JSON at byte 2 of it");
  EXPECT_EQ(refusal("{\"a\xff\":{}}", ""), "its header is not JSON at byte 4 of it");  // not UTF-8
  EXPECT_EQ(refusal("{\"\xc0\x80\":{}}", ""),
            "its header is not JSON at byte 3 of it");  // overlong
  EXPECT_EQ(refusal(R"({"\ud800":{}})", ""), "its header is not JSON at byte 9 of it");
  EXPECT_EQ(refusal("{\"a\n\":{}}", ""), "its header is not JSON at byte 4 of it");
}

TEST(HostileTensorFile, DeepNesting) {
  const std::string deep(1'000'000, '[');
  EXPECT_EQ(refusal("{\"a\":" + deep, ""),
            "the header's entry 'a' must be an object, but is an array");
  EXPECT_EQ(refusal(one("\"shape\":" + deep), ""), "tensor 'a' has an array in its shape");
  std::string objects = "{";
  for (int i = 0; i < 100'000; ++i) objects += "\"dtype\":{";
  EXPECT_EQ(refusal(objects, ""), "tensor 'dtype' has an object as its dtype");
}

TEST(HostileTensorFile, DuplicateKeys) {
  EXPECT_EQ(refusal("{" + entry("a", 0, 1) + "," + entry("a", 1, 2) + "}", "12"),
            "its header has 'a' twice");
  EXPECT_EQ(refusal("{" + entry("a", 0, 1) + R"(,"\u0061":{}})", "1"), "its header has 'a' twice");
  EXPECT_EQ(refusal(R"({"__metadata__":{},"__metadata__":{}})", ""),
            "its header has '__metadata__' twice");
  EXPECT_EQ(refusal(R"({"__metadata__":{"k":"v","k":"v"}})", ""), "its metadata has 'k' twice");
  EXPECT_EQ(refusal(one(R"("dtype":"U8","dtype":"U8")"), ""),
            "tensor 'a' has the field 'dtype' twice");
}

TEST(HostileTensorFile, WrongShapeOfTheHeader) {
  EXPECT_EQ(refusal(R"({"a":1})", ""), "the header's entry 'a' must be an object, but is a number");
  EXPECT_EQ(refusal(R"({"a":null})", ""), "the header's entry 'a' must be an object, but is null");
  EXPECT_EQ(refusal(R"({"a":"x"})", ""),
            "the header's entry 'a' must be an object, but is a string");
  EXPECT_EQ(refusal(R"({"a":true})", ""),
            "the header's entry 'a' must be an object, but is a boolean");
  EXPECT_EQ(refusal(R"({"__metadata__":{"k":1}})", ""),
            "the metadata's 'k' must be a string, but is a number");
  EXPECT_EQ(refusal(R"({"__metadata__":{"k":{}}})", ""),
            "the metadata's 'k' must be a string, but is an object");
  EXPECT_EQ(refusal(one(R"("dtype":["U8"])"), ""), "tensor 'a' has an array as its dtype");
  EXPECT_EQ(refusal(one(R"("shape":{})"), ""), "tensor 'a' has an object as its shape");
  EXPECT_EQ(refusal(one(R"("shape":"2")"), ""), "tensor 'a' has a string as its shape");
  EXPECT_EQ(refusal(one(R"("shape":[null])"), ""), "tensor 'a' has null in its shape");
  EXPECT_EQ(refusal(one(R"("strides":[1])"), ""), "tensor 'a' has an unknown field 'strides'");
  EXPECT_EQ(refusal(one(R"("dtype":"U8","shape":[])"), ""),
            "tensor 'a' lacks the field 'data_offsets'");
  EXPECT_EQ(refusal(one(R"("dtype":"U8","data_offsets":[0,1])"), "1"),
            "tensor 'a' lacks the field 'shape'");
  EXPECT_EQ(refusal(one(R"("shape":[],"data_offsets":[0,1])"), "1"),
            "tensor 'a' lacks the field 'dtype'");
  EXPECT_EQ(refusal(one(R"("data_offsets":[0])"), ""),
            "tensor 'a' must have two data_offsets, begin and end");
  EXPECT_EQ(refusal(one(R"("data_offsets":[0,1,2])"), ""),
            "tensor 'a' must have two data_offsets, begin and end");
  EXPECT_EQ(refusal(one(R"("dtype":"F33","shape":[],"data_offsets":[0,1])"), "1"),
            "tensor 'a' has an unknown dtype 'F33'");
}

TEST(HostileTensorFile, WrongNumbers) {
  const auto with_size = [](const std::string& size) {
    return refusal(one(R"("dtype":"U8","shape":[)" + size + R"(],"data_offsets":[0,1])"), "1");
  };
  EXPECT_EQ(with_size("-1"), "tensor 'a' has a negative number in its shape");
  EXPECT_EQ(with_size("-0"), "tensor 'a' has a negative number in its shape");
  EXPECT_EQ(with_size("1.0"), "tensor 'a' has a number that is no whole 64-bit one in its shape");
  EXPECT_EQ(with_size("1e0"), "tensor 'a' has a number that is no whole 64-bit one in its shape");
  EXPECT_EQ(with_size("18446744073709551616"),
            "tensor 'a' has a number that is no whole 64-bit one in its shape");
  EXPECT_EQ(with_size("1" + std::string(10'000, '0')),
            "its header is not JSON at byte 10029 of it");  // not even a double
  EXPECT_EQ(with_size("1e99999"), "its header is not JSON at byte 35 of it");
  EXPECT_EQ(with_size("9223372036854775808"),
            "tensor 'a' has a size of 9223372036854775808, more than 64 signed bits hold");
  EXPECT_EQ(with_size("01"), "its header is not JSON at byte 30 of it");
  EXPECT_EQ(with_size("4294967296,4294967296"),
            "tensor 'a' has a shape whose number of elements overflows");
  EXPECT_EQ(with_size("0,4294967296,4294967296"),
            "tensor 'a' has a shape whose number of elements overflows");
  EXPECT_EQ(with_size("2"), "tensor 'a' takes 1 bytes, but its dtype and shape make 2");
  EXPECT_EQ(with_size("0"), "tensor 'a' takes 1 bytes, but its dtype and shape make 0");
  EXPECT_EQ(refusal(one(R"("dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0])"), ""),
            "tensor 'a' has a shape whose number of bytes overflows");
}

TEST(HostileTensorFile, WrongPlaces) {
  const auto at = [](const std::string& offsets) {
    return refusal(one(R"("dtype":"U8","shape":[1],"data_offsets":[)" + offsets + "]"), "1");
  };
  EXPECT_EQ(at("1,0"), "tensor 'a' begins at byte 1 and ends before it, at 0");
  EXPECT_EQ(at("18446744073709551615,0"),
            "tensor 'a' begins at byte 18446744073709551615 and ends before it, at 0");
  EXPECT_EQ(
      at("0,18446744073709551615"),
      "tensor 'a' ends at byte 18446744073709551615, but the file holds only 1 bytes of data: "
      "it is cut off");
  EXPECT_EQ(at("-1,0"), "tensor 'a' has a negative number in its data_offsets");
  EXPECT_EQ(refusal("{" + entry("a", 0, 2) + "," + entry("b", 1, 3) + "}", "123"),
            "tensors 'a' and 'b' overlap");
  EXPECT_EQ(refusal("{" + entry("a", 0, 3) + "," + entry("b", 0, 3) + "}", "123"),
            "tensors 'a' and 'b' overlap");
  EXPECT_EQ(refusal("{" + entry("a", 0, 2) + "," + entry("b", 1, 1) + "}", "12"),
            "tensors 'a' and 'b' overlap");
  EXPECT_EQ(refusal("{" + entry("a", 0, 1) + "," + entry("b", 2, 3) + "}", "123"),
            "bytes 1 to 2 of its data belong to no tensor");
  EXPECT_EQ(refusal("{" + entry("a", 1, 2) + "}", "12"),
            "bytes 0 to 1 of its data belong to no tensor");
  EXPECT_EQ(refusal("{" + entry("a", 0, 1) + "}", "123"), "2 bytes follow the last tensor");
  EXPECT_EQ(refusal("{}", "1"), "1 bytes follow the last tensor");
}

TEST(HostileTensorFile, HalfBytes) {
  EXPECT_EQ(refusal(one(R"("dtype":"F4","shape":[3],"data_offsets":[0,2])"), "12"),
            "tensor 'a' does not end at a whole byte");
  EXPECT_EQ(refusal(one(R"("dtype":"F4","shape":[],"data_offsets":[0,1])"), "1"),
            "tensor 'a' does not end at a whole byte");
}

TEST(HostileTensorFile, LongNamesAreCutInTheText) {
  std::string name(99, 'x');
  name += "é";  // its two bytes lie on both sides of the cut
  const std::string shown = "'" + name.substr(0, 99) + "…'";
  EXPECT_EQ(refusal("{\"" + name + "\":1}", ""),
            "the header's entry " + shown + " must be an object, but is a number");
}

}  // namespace
}  // namespace torchlore
