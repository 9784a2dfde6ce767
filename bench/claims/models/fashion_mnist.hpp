#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

/// Fashion-MNIST: 28×28 images of 10 kinds of clothes, from Debian's package dataset-fashion-mnist.
namespace torchlore::models {

/// Images [N, 1, 28, 28], float32 with mean 0 and variance 1 over the training set; labels [N].
struct Images {
  at::Tensor x = {};
  at::Tensor y = {};

  int64_t size() const { return y.size(0); }
};

/// The first images of both parts.
struct FashionMnist {
  Images train = {};
  Images test = {};
};

/// Reads the files where the package puts them, or where cmake/claims.cmake unpacks it.
/// @return nothing if they are not there.
std::optional<FashionMnist> load_fashion_mnist(int64_t train, int64_t test);

/// For a line's note.
inline const char* const kFashionMnistMissing =
    "the Debian package dataset-fashion-mnist is not installed";

}  // namespace torchlore::models
