#pragma once

#include <ATen/Functions.h>
#include <gtest/gtest.h>
#include <torch/optim/optimizer.h>
#include <torch/serialize/archive.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "support/message.hpp"
#include "support/tolerance.hpp"
#include "test_paths.hpp"
#include "torchlore/core/gradient_pass.hpp"
#include "torchlore/core/parameters.hpp"

/// What the tests of the fused optimizers share.
namespace torchlore::testing {

using Tensors = std::vector<at::Tensor>;

/// Parameters of sizes around the vector widths, an empty one, a 0-d one, and two whose memory
/// order is not row-major.
inline Tensors odd_shapes(at::ScalarType dtype) {
  Tensors params;
  for (const int64_t n : {1, 7, 16, 33, 1003}) params.push_back(at::randn({n}, at::kDouble));
  params.push_back(at::randn({}, at::kDouble));
  params.push_back(at::empty({0, 3}, at::kDouble));
  params.push_back(at::randn({5, 3}, at::kDouble).t());
  params.push_back(at::randn({2, 3, 4, 5}, at::kDouble).to(at::MemoryFormat::ChannelsLast));
  for (auto& p : params) p = p.to(dtype).requires_grad_();
  return params;
}

/// Copies with the same strides, to be trained by another optimizer.
inline Tensors copies(const Tensors& params) {
  Tensors result;
  for (const auto& p : params) {
    result.push_back(p.detach().clone(at::MemoryFormat::Preserve).requires_grad_());
  }
  return result;
}

/// Gives both lists the same random gradients, laid out as the parameters are.
inline void set_gradients(Tensors& a, Tensors& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    const auto grad = at::empty_like(a[i].detach());
    grad.copy_(at::randn(a[i].sizes(), at::kDouble));
    a[i].mutable_grad() = grad;
    b[i].mutable_grad() = grad.clone(at::MemoryFormat::Preserve);
  }
}

/// The largest difference between two lists of tensors.
inline double largest_difference(const Tensors& a, const Tensors& b) {
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i].numel() == 0) continue;
    const auto gap = (a[i].detach().to(at::kDouble) - b[i].detach().to(at::kDouble)).abs().max();
    const double value = gap.item<double>();
    if (!(value <= largest)) largest = value;
  }
  return largest;
}

/// The namesake and the fused optimizer on copies of the same parameters, with the same gradients.
template <typename Traits>
struct Twin {
  Twin(Tensors params, const typename Traits::Options& options)
      : plain_params(copies(params)),
        fused_params(std::move(params)),
        plain(plain_params, options),
        fused(fused_params, options) {}

  void steps(int count) {
    for (int i = 0; i < count; ++i) {
      set_gradients(plain_params, fused_params);
      plain.step();
      fused.step();
    }
  }

  ::testing::AssertionResult equal() const {
    const double limit = fused_params[0].scalar_type() == at::kDouble ? 1e-12 : 1e-6;
    const double difference = largest_difference(plain_params, fused_params);
    if (difference <= limit) return ::testing::AssertionSuccess();
    return ::testing::AssertionFailure() << "parameters differ by " << difference;
  }

  Tensors plain_params;
  Tensors fused_params;
  typename Traits::Namesake plain;
  typename Traits::Fused fused;
};

/// Saves one optimizer and loads it into another, through bytes.
inline void exchange(const torch::optim::Optimizer& from, torch::optim::Optimizer& to) {
  std::stringstream bytes;
  torch::serialize::OutputArchive out;
  from.save(out);
  out.save_to(bytes);
  torch::serialize::InputArchive in;
  in.load_from(bytes);
  to.load(in);
}

using OptionMap = std::map<std::string, double>;

/// One run of a Python optimizer; see tests/oracles/optimizer_trajectories.py.
struct Trajectory {
  std::string optimizer = {};
  OptionMap first = {};
  OptionMap second = {};
  std::map<int, std::vector<double>> values = {};
};

inline OptionMap read_options(std::istream& line) {
  OptionMap options;
  std::string key;
  double value = 0;
  while (line >> key >> value) options[key] = value;
  return options;
}

inline std::vector<Trajectory> read_trajectories(const std::string& optimizer) {
  std::ifstream file(TORCHLORE_TEST_DATA "/optimizer_trajectories.txt");
  std::vector<Trajectory> all;
  std::string text, word;
  while (std::getline(file, text)) {
    std::istringstream line(text);
    line >> word;
    if (word == "optimizer") line >> all.emplace_back().optimizer;
    if (word == "first") all.back().first = read_options(line);
    if (word == "second") all.back().second = read_options(line);
    if (word == "values") {
      int step = 0;
      line >> step;
      auto& values = all.back().values[step];
      for (double value = 0; line >> value;) values.push_back(value);
    }
  }
  std::erase_if(all, [&](const Trajectory& t) { return t.optimizer != optimizer; });
  return all;
}

}  // namespace torchlore::testing
