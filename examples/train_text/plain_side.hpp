#pragma once

#include <torch/nn/utils/clip_grad.h>
#include <torch/optim/adamw.h>
#include <torch/serialize/archive.h>

#include "run.hpp"

namespace text {

inline torch::optim::AdamWOptions adamw(const Settings& s) {
  return torch::optim::AdamWOptions(s.learning_rate).betas({0.9, 0.95}).weight_decay(0.1);
}

/// The loop as a LibTorch user writes it today.
class PlainSide {
 public:
  PlainSide(const Run& run, Record& record)
      : model(run.make_model()),
        run_(run),
        record_(record),
        optimizer_(model->parameters(), adamw(run.settings)) {
    record.precision = "fp32";
  }

  void step(int64_t step) {
    const auto micro_batches = run_.settings.accumulate;
    optimizer_.param_groups()[0].options().set_lr(run_.learning_rate(step));
    optimizer_.zero_grad();
    for (int64_t micro = 0; micro < micro_batches; ++micro) {
      const auto loss = next_byte_loss(model, run_.batch(step, micro));
      (loss / micro_batches).backward();
    }
    torch::nn::utils::clip_grad_norm_(model->parameters(), 1.0);
    optimizer_.step();
  }

  void save() {
    torch::serialize::OutputArchive all, weights, moments;
    model->save(weights);
    optimizer_.save(moments);
    all.write("model", weights);
    all.write("optimizer", moments);
    all.write("step", c10::IValue(record_.step));
    all.write("seconds", c10::IValue(record_.seconds));
    all.save_to(path() + ".new");
    std::filesystem::rename(path() + ".new", path());
  }

  bool resume() {
    if (!std::filesystem::exists(path())) return false;
    torch::serialize::InputArchive all, weights, moments;
    all.load_from(path(), run_.device());
    all.read("model", weights);
    all.read("optimizer", moments);
    model->load(weights);
    optimizer_.load(moments);
    c10::IValue value;
    all.read("step", value);
    record_.step = value.toInt();
    all.read("seconds", value);
    record_.seconds = value.toDouble();
    return true;
  }

  GPT model;

 private:
  std::string path() const { return run_.file("plain.pt").string(); }

  const Run& run_;
  Record& record_;
  torch::optim::AdamW optimizer_;
};

}  // namespace text
