// A run that can be killed at any time and started again: it goes on as if nothing had happened.
#include <torch/torch.h>

#include <iostream>
#include <string_view>
#include <torchlore/core/run_state.hpp>
#include <torchlore/data/resumable_sampler.hpp>

int main(int argc, char** argv) {
  const bool quick = argc > 1 && std::string_view(argv[1]) == "--quick";
  const int64_t epochs = quick ? 2 : 200;

  torch::manual_seed(0);
  const auto x = torch::rand({1'000, 1}) * 6 - 3;
  auto data = torch::data::datasets::TensorDataset(x).map(
      torch::data::transforms::Stack<torch::data::TensorExample>());
  torch::nn::Sequential model(torch::nn::Linear(1, 64), torch::nn::Tanh(), torch::nn::Dropout(0.1),
                              torch::nn::Linear(64, 1));
  torch::optim::AdamW optimizer(model->parameters(), 1e-3);
  torchlore::ResumableSampler sampler(x.size(0), {.seed = 1});
  auto loader =
      torch::data::make_data_loader(data, sampler, torch::data::DataLoaderOptions(50).workers(2));

  int64_t step = 0;
  torchlore::RunState run("runs/resume_run", {.keep = 2});
  run.add("model", *model)
      .add("optimizer", optimizer, *model)
      .add("sampler", sampler)
      .add("step", step);
  if (run.resume()) std::cout << "resumed at step " << step << '\n';

  while (sampler.epoch() < epochs) {
    for (auto& batch : *loader) {
      const auto loss = torch::mse_loss(model->forward(batch.data), batch.data.sin());
      optimizer.zero_grad();
      loss.backward();
      optimizer.step();
      sampler.consume(batch.data.size(0));
      if (++step % 100 == 0)
        std::cout << "step " << step << "  loss " << loss.item<double>() << '\n';
      if (step % 100 == 0) run.save(step);
    }
  }
  run.save(step);
  std::cout << "trained to step " << step << "; saved in runs/resume_run\n";
}
