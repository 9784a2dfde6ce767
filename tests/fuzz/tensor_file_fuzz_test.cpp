// Feeds the safetensors parser with files that are right, nearly right, and wrong. Input i is a
// pure function of i. TORCHLORE_FUZZ_INPUTS sets how many; the default keeps the suite quick.
#include "tensor_file_fuzz.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <iostream>
#include <vector>

#include "support/files.hpp"
#include "torchlore/core/philox.hpp"

namespace torchlore {
namespace {

using testing::safetensors_bytes;

const std::vector<std::string> kDtypes = {
    "BOOL",    "F4",          "F6_E2M3",     "F6_E3M2", "U8",  "I8",  "F8_E5M2", "F8_E4M3",
    "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I16",     "U16", "F16", "BF16",    "I32",
    "U32",     "F32",         "C64",         "F64",     "I64", "U64"};
const std::vector<int64_t> kBits = {8,  4,  6,  6,  8,  8,  8,  8,  8,  8,  8,
                                    16, 16, 16, 16, 32, 32, 32, 64, 64, 64, 64};

const std::vector<std::string> kNumbers = {"0",
                                           "1",
                                           "2",
                                           "-1",
                                           "-0",
                                           "1.0",
                                           "1e2",
                                           "4294967296",
                                           "2147483648",
                                           "9223372036854775807",
                                           "9223372036854775808",
                                           "true",
                                           "null",
                                           "\"1\"",
                                           "[]",
                                           "18446744073709551615",
                                           "18446744073709551616",
                                           "01"};

const std::vector<std::string> kPieces = {"{",
                                          "}",
                                          "[",
                                          "]",
                                          ",",
                                          ":",
                                          "\"",
                                          "\\",
                                          "\\u0000",
                                          "\\ud800",
                                          "\xff",
                                          "\xc3",
                                          std::string(1, '\0'),
                                          "[[[[[[[[",
                                          "{\"a\":",
                                          "/**/",
                                          "\"dtype\":\"U8\"",
                                          "\"shape\":[1]",
                                          "\"data_offsets\":[0,1]",
                                          "\"__metadata__\":{}",
                                          " ",
                                          "\"__metadata__\":{\"a\":\"b\"}",
                                          "\xef\xbb\xbf",
                                          "\n",
                                          "\"t0\":{}"};

class Generator {
 public:
  explicit Generator(uint64_t input)
      : random_(PhiloxStream(7, static_cast<int64_t>(input >> 32),
                             static_cast<int64_t>(input & 0xFFFF'FFFFU))) {}

  std::string file() {
    std::string header = right_header();
    const uint64_t mutations = random_.below(4);  // a quarter of the files is right
    for (uint64_t i = 0; i < mutations && random_.below(3) > 0; ++i) mutate_header(header);
    std::string bytes = safetensors_bytes(header, data_);
    if (mutations == 3) mutate_bytes(bytes);
    return bytes;
  }

 private:
  template <typename T>
  const T& one_of(const std::vector<T>& from) {
    return from[random_.below(from.size())];
  }

  size_t place_in(const std::string& text) { return random_.below(text.size() + 1); }

  /// A header that is right, with its data.
  std::string right_header() {
    std::string header = "{";
    if (random_.below(3) == 0) header += R"("__metadata__":{"format":"pt","k\u00e9":""},)";
    const uint64_t count = random_.below(5);
    for (uint64_t i = 0; i < count; ++i) header += tensor(i) + ",";
    if (header.back() == ',') header.pop_back();
    return header + "}" + std::string(random_.below(9), ' ');
  }

  std::string tensor(uint64_t index) {
    const uint64_t dtype = random_.below(kDtypes.size());
    std::string shape;
    int64_t elements = 1;
    for (uint64_t left = random_.below(4); left > 0; --left) {
      const auto size = static_cast<int64_t>(random_.below(6));
      elements *= size;
      shape += std::to_string(size);
      shape += ',';
    }
    if (elements * kBits[dtype] % 8 != 0) {  // whole bytes
      elements *= 8;
      shape += "8,";
    }
    if (!shape.empty()) shape.pop_back();
    const size_t begin = data_.size();
    for (int64_t i = 0; i < elements * kBits[dtype] / 8; ++i) {
      data_ += static_cast<char>(random_.below(dtype == 0 ? 2 : 256));
    }
    std::string text = "\"t";
    text += std::to_string(index) + R"(":{"dtype":")" + kDtypes[dtype] + R"(","shape":[)" + shape;
    text += R"(],"data_offsets":[)" + std::to_string(begin) + "," + std::to_string(data_.size());
    return text + "]}";
  }

  void mutate_header(std::string& header) {
    switch (random_.below(6)) {
      case 0:
        return replace_number(header);
      case 1:
        header.insert(place_in(header), one_of(kPieces));
        return;
      case 2:
        header.erase(place_in(header), random_.below(20));
        return;
      case 3: {  // repeats a part: keys, entries, nesting
        const size_t from = place_in(header);
        const std::string part = header.substr(from, random_.below(80));
        header.insert(place_in(header), part);
        return;
      }
      case 4: {
        const size_t from = header.find("\"dtype\":\"");
        if (from == std::string::npos) return;
        const size_t start = from + 9;
        header.replace(start, header.find('"', start) - start, one_of(kDtypes));
        return;
      }
      default:
        if (!header.empty()) header[random_.below(header.size())] = static_cast<char>(random_());
    }
  }

  void replace_number(std::string& header) {
    std::vector<size_t> numbers;
    for (size_t i = 1; i < header.size(); ++i) {
      if (std::isdigit(static_cast<unsigned char>(header[i])) != 0 &&
          (header[i - 1] == '[' || header[i - 1] == ',')) {
        numbers.push_back(i);
      }
    }
    if (numbers.empty()) return;
    const size_t start = one_of(numbers);
    const size_t end = header.find_first_not_of("0123456789", start);
    header.replace(start, std::min(end, header.size()) - start, one_of(kNumbers));
  }

  void mutate_bytes(std::string& bytes) {
    switch (random_.below(4)) {
      case 0:
        bytes.resize(random_.below(bytes.size() + 1));
        return;
      case 1:
        bytes += std::string(1 + random_.below(9), 'x');
        return;
      case 2:  // the size of the header
        bytes[random_.below(8)] = static_cast<char>(random_());
        return;
      default:
        bytes[random_.below(bytes.size())] = static_cast<char>(random_());
    }
  }

  PhiloxEngine random_;
  std::string data_;
};

TEST(TensorFileFuzz, RefusesOrReadsAnything) {
  const char* asked = std::getenv("TORCHLORE_FUZZ_INPUTS");
  const uint64_t inputs = asked != nullptr ? std::strtoull(asked, nullptr, 10) : 20'000;
  uint64_t accepted = 0;
  for (uint64_t i = 0; i < inputs; ++i) {
    const auto bytes = Generator(i).file();
    accepted +=
        testing::fuzz_tensor_file(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  }
  std::cout << inputs << " inputs, " << accepted << " accepted\n";
  // Both sides must be reached, or this tests nothing.
  EXPECT_GT(accepted, inputs / 5);
  EXPECT_LT(accepted, inputs * 4 / 5);
}

}  // namespace
}  // namespace torchlore
