#include "fashion_mnist.hpp"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace torchlore::models {
namespace {

namespace fs = std::filesystem;

std::optional<fs::path> folder() {
  for (const auto& prefix :
       {fs::path("/usr"), fs::path(TORCHLORE_SOURCE_DIR) / "build/debian/usr"}) {
    const auto path = prefix / "share/datasets/fashion-mnist";
    if (fs::exists(path / "train-images-idx3-ubyte.gz")) return path;
  }
  return std::nullopt;
}

/// The first `count` items of an IDX file: a header of 4-byte numbers, then bytes.
at::Tensor read_idx(const fs::path& path, int64_t header, int64_t count, int64_t item) {
  const auto close = [](FILE* file) { pclose(file); };
  const auto command = "gzip -dc '" + path.string() + "' 2> /dev/null";
  const std::unique_ptr<FILE, decltype(close)> file(popen(command.c_str(), "r"), close);
  TORCH_CHECK(file, "cannot run ", command);
  std::vector<char> skipped(static_cast<size_t>(header));
  const auto bytes = at::empty({count, item}, at::kByte);
  const auto size = static_cast<size_t>(count * item);
  const bool read = std::fread(skipped.data(), 1, skipped.size(), file.get()) == skipped.size() &&
                    std::fread(bytes.mutable_data_ptr(), 1, size, file.get()) == size;
  TORCH_CHECK(read, path.string(), " holds fewer than ", count, " items");
  return bytes;
}

Images read_images(const fs::path& folder, const std::string& part, int64_t count) {
  constexpr double kMean = 0.2860, kDeviation = 0.3530;  // of the training set's pixels
  const auto x = read_idx(folder / (part + "-images-idx3-ubyte.gz"), 16, count, 784);
  const auto y = read_idx(folder / (part + "-labels-idx1-ubyte.gz"), 8, count, 1);
  return {((x.to(at::kFloat) / 255 - kMean) / kDeviation).reshape({count, 1, 28, 28}),
          y.reshape(-1).to(at::kLong)};
}

}  // namespace

std::optional<FashionMnist> load_fashion_mnist(int64_t train, int64_t test) {
  const auto found = folder();
  if (!found) return std::nullopt;
  return FashionMnist{read_images(*found, "train", train), read_images(*found, "t10k", test)};
}

}  // namespace torchlore::models
