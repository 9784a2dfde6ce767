// Saves a model's weights so that Python can read them, and reads them back without a copy.
//
// In Python: safetensors.torch.load_file("weights.safetensors")
#include <torch/torch.h>

#include <iostream>
#include <string_view>
#include <torchlore/core/tensor_file.hpp>

int main(int argc, char** argv) {
  const bool quick = argc > 1 && std::string_view(argv[1]) == "--quick";
  const int64_t width = quick ? 64 : 2'048;
  torch::nn::Sequential model(torch::nn::Linear(width, width), torch::nn::ReLU(),
                              torch::nn::Linear(width, 10));

  torchlore::StateDict weights;
  for (const auto& item : model->named_parameters()) weights[item.key()] = item.value();
  torchlore::write_tensors("weights.safetensors", weights, {{"format", "pt"}});

  const auto file = torchlore::TensorFile::open("weights.safetensors");
  for (const auto& [name, info] : file.infos()) {
    std::cout << name << "  " << info.format_dtype << "  " << at::IntArrayRef(info.shape) << "  "
              << info.end - info.begin << " bytes\n";
  }

  const torch::NoGradGuard no_grad;
  for (auto& item : model->named_parameters()) {
    item.value().zero_();
    item.value().copy_(file.tensor(item.key()));  // the only copy: from the file into the model
  }
  std::cout << "read " << file.infos().size() << " tensors from weights.safetensors\n";
}
