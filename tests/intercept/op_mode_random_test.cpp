// Random programs of ops, modes, guards and exceptions, against a model of what sees each op that is
// a plain list.
#include <ATen/core/Tensor.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/neg.h>
#include <ATen/ops/ones.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "torchlore/intercept/op_call.hpp"
#include "torchlore/intercept/op_mode.hpp"

namespace torchlore {
namespace {

/// What a handler sees, in order.
using Log = std::vector<std::string>;

const std::vector<std::string> kOps{"aten::mm", "aten::bmm", "aten::neg"};

void run(const std::string& op) {
  const auto ones = at::ones({1, 1, 1});
  if (op == "aten::mm") at::mm(ones[0], ones[0]);
  if (op == "aten::bmm") at::bmm(ones, ones);
  if (op == "aten::neg") at::neg(ones);
}

/// A mode of the model: whether it sees the op, and what its handler then does.
struct Model {
  int number = 0;
  enum Kind { typed, other_typed, boxed, mixed } kind = typed;
  bool throws = false;

  bool sees(const std::string& op) const {
    return kind == boxed || kind == mixed || (kind == typed && op == "aten::mm") ||
           (kind == other_typed && op == "aten::bmm");
  }
  std::string line(const std::string& op) const { return std::to_string(number) + " " + op; }
};

/// What a handler does with each op: it may throw, and the odd ones call another op first.
void handle(const Model& model, Log& log, const std::string& op) {
  log.push_back(model.line(op));
  if (model.throws) throw std::runtime_error("thrown");
  if (model.number % 2 == 1) run("aten::neg");
}

struct Typed : OpHandler {
  Typed(const Model& m, Log& l) : model(m), log(l) {}
  at::Tensor mm(const at::Tensor& a, const at::Tensor& b) override {
    handle(model, log, "aten::mm");
    return OpHandler::mm(a, b);
  }
  Model model;
  Log& log;
};

struct OtherTyped : OpHandler {
  OtherTyped(const Model& m, Log& l) : model(m), log(l) {}
  at::Tensor bmm(const at::Tensor& a, const at::Tensor& b) override {
    handle(model, log, "aten::bmm");
    return OpHandler::bmm(a, b);
  }
  Model model;
  Log& log;
};

bool one_of_ours(const std::string& op) {
  return std::find(kOps.begin(), kOps.end(), op) != kOps.end();
}

struct Boxed : OpHandler {
  Boxed(const Model& m, Log& l) : model(m), log(l) {}
  void boxed(OpCall& call) override {
    if (one_of_ours(call.name())) handle(model, log, call.name());
    call.run();
  }
  Model model;
  Log& log;
};

struct Mixed : Boxed {
  using Boxed::Boxed;
  at::Tensor bmm(const at::Tensor& a, const at::Tensor& b) override {
    handle(model, log, "aten::bmm");
    return OpHandler::bmm(a, b);
  }
};

/// The lines that an op leaves when these modes are on, outermost first. Returns whether it throws.
bool expect(const std::vector<Model>& modes, const std::string& op, Log& log) {
  for (size_t i = modes.size(); i-- > 0;) {
    if (!modes[i].sees(op)) continue;
    const std::vector<Model> around(modes.begin(), modes.begin() + static_cast<int64_t>(i));
    log.push_back(modes[i].line(op));
    if (modes[i].throws) return true;
    if (modes[i].number % 2 == 1 && expect(around, "aten::neg", log)) return true;
    return expect(around, op, log);
  }
  return false;
}

class Program {
 public:
  explicit Program(uint64_t seed) : random_(seed) {}

  void block(int depth) {
    for (int statements = draw(4) + 1; statements > 0; --statements) {
      const int choice = draw(depth > 0 ? 6 : 2);
      if (choice < 2) call(kOps[static_cast<size_t>(draw(3))]);
      if (choice == 2 || choice == 3) in_mode(depth);
      if (choice == 4) in_guard(depth, draw(2) == 0);
      if (choice == 5) on_a_thread(depth);
    }
  }

  Log seen, expected;
  int ops = 0;

 private:
  int draw(int n) { return static_cast<int>(random_() % static_cast<uint64_t>(n)); }

  void call(const std::string& op) {
    const bool throws = expect(modes_, op, expected);
    bool thrown = false;
    try {
      run(op);
    } catch (const std::runtime_error&) {
      thrown = true;
    }
    EXPECT_EQ(thrown, throws);
    ++ops;
  }

  template <typename Handler>
  void in_mode_of(const Model& model, int depth) {
    Handler handler(model, seen);
    const OpMode mode(handler);
    modes_.push_back(model);
    block(depth - 1);
    modes_.pop_back();
  }

  void in_mode(int depth) {
    const Model model{
        .number = number_++, .kind = static_cast<Model::Kind>(draw(4)), .throws = draw(6) == 0};
    if (model.kind == Model::typed) return in_mode_of<Typed>(model, depth);
    if (model.kind == Model::other_typed) return in_mode_of<OtherTyped>(model, depth);
    if (model.kind == Model::boxed) return in_mode_of<Boxed>(model, depth);
    in_mode_of<Mixed>(model, depth);
  }

  /// Hides all modes, or enters those there are once more, with others of their own in between.
  void in_guard(int depth, bool hide) {
    const auto state = hide ? OpModeState() : OpModeState::capture();
    const auto before = modes_;
    if (hide) modes_.clear();
    {
      const OpModeGuard off{OpModeState()};
      const OpModeGuard guard(state);
      block(depth - 1);
    }
    modes_ = before;
  }

  void on_a_thread(int depth) {
    const auto state = OpModeState::capture();
    const auto before = modes_;
    std::thread([&] {
      modes_.clear();
      block(0);
      {
        const OpModeGuard guard(state);
        modes_ = before;
        block(depth - 1);
      }
      modes_.clear();
      block(0);
    }).join();
    modes_ = before;
  }

  std::mt19937_64 random_;
  std::vector<Model> modes_;
  int number_ = 0;
};

TEST(OpModeRandom, ProgramsAreSeenAsTheModelSays) {
  int ops = 0;
  for (uint64_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(seed);
    Program program(seed);
    program.block(5);
    EXPECT_EQ(program.seen, program.expected);
    EXPECT_TRUE(OpModeState::capture().empty());
    ops += program.ops;
  }
  EXPECT_GT(ops, 5'000);
}

}  // namespace
}  // namespace torchlore
