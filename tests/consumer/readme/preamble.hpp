#pragma once

// What the snippets of README.md talk about without declaring it.
#include <torch/torch.h>

#include <torchlore/torchlore.hpp>

namespace tl = torchlore;

inline const at::Device device(at::kCPU);
inline const at::Tensor x = torch::randn({8, 4});
inline const at::Tensor y = torch::randn({8, 1});
inline torch::nn::Sequential model(torch::nn::Linear(4, 1));
inline torch::optim::SGD optimizer(model->parameters(), 1e-2);
inline torch::nn::MSELoss criterion;
