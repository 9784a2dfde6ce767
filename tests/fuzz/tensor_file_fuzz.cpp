// The libFuzzer target of the safetensors parser. It needs clang, and is built by hand:
//   clang++ -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -Iinclude -isystem TORCH/include
//     tests/fuzz/tensor_file_fuzz.cpp src/core/tensor_file.cpp src/core/tensor_file_header.cpp
//     src/core/tensor_file_layout.cpp
//     -LTORCH/lib -Wl,-rpath,TORCH/lib -ltorch_cpu -lc10 -o tensor_file_fuzz
//   ./tensor_file_fuzz -runs=1000000 -max_len=4096 tests/oracles/data/tensor_file
// tensor_file_fuzz_test.cpp feeds the same function without clang.
#include "tensor_file_fuzz.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  torchlore::testing::fuzz_tensor_file(data, size);
  return 0;
}
