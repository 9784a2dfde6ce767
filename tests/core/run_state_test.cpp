#include "torchlore/core/run_state.hpp"

#include <ATen/Context.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>
#include <torch/optim/lbfgs.h>
#include <unistd.h>

#include <fstream>

#include "support/message.hpp"
#include "support/tolerance.hpp"
#include "torchlore/core/tensor_file.hpp"
#include "torchlore/data/resumable_sampler.hpp"
#include "torchlore/optimizer/fused_adamw.hpp"
#include "torchlore/precision/loss_scaler.hpp"
#include "torchlore/step.hpp"

namespace torchlore {
namespace {

namespace fs = std::filesystem;
using testing::message_of;
using testing::same;

/// A folder of the test's own.
class RunStateTest : public ::testing::Test {
 protected:
  RunStateTest() {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    base_ = fs::path(::testing::TempDir()) / ("torchlore_run_" + std::to_string(::getpid()));
    folder_ = base_ / info->name();
  }
  ~RunStateTest() override { fs::remove_all(base_); }

  std::vector<std::string> files() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_)) {
      names.push_back(entry.path().filename().string());
    }
    std::sort(names.begin(), names.end());
    return names;
  }
  fs::path file(const char* name) const { return folder_ / name; }
  /// The text with the folder's own path as "FOLDER".
  std::string generic(std::string text) const {
    const auto path = folder_.string();
    for (auto at = text.find(path); at != std::string::npos; at = text.find(path)) {
      text.replace(at, path.size(), "FOLDER");
    }
    return text;
  }
  /// Saves one counter in a folder nobody holds.
  void save_counter(int64_t value) {
    RunState run(folder_);
    run.add("counter", value);
    run.resume();
    run.save(value);
  }

  fs::path base_, folder_;
};

/// What a training loop has, with one of each kind that can be added.
struct Everything {
  torch::nn::Linear model{3, 2};
  torch::optim::AdamW optimizer{model->parameters()};
  LossScaler scaler;
  ResumableSampler sampler{10};
  at::Tensor average = at::zeros({2}, at::kBFloat16);
  int64_t step = 0;
  double best = 1;
  bool warm = false;
  std::string name = "new";

  void add_to(RunState& run) {
    run.add("model", *model).add("optimizer", optimizer, *model).add("scaler", scaler);
    run.add("sampler", sampler).add("average", average);
    run.add("step", step).add("best", best).add("warm", warm).add("name", name);
  }
  void change() {
    optimizer.zero_grad();
    model->forward(at::ones({1, 3})).sum().backward();
    optimizer.step();
    scaler.scale(at::ones({}));
    scaler.update(512.0);
    sampler.next(4);
    sampler.consume(4);
    average.fill_(3);
    step = 12;
    best = 0.1;
    warm = true;
    name = "run \n\"ä\"";
  }
};

TEST_F(RunStateTest, RestoresEverythingInPlace) {
  Everything saved;
  saved.change();
  at::Tensor expected;
  {
    RunState run(folder_);
    saved.add_to(run);
    EXPECT_EQ(run.save(), file("step-00000001.safetensors"));
    expected = at::rand({3});
  }
  Everything fresh;
  const void* const weight = fresh.model->weight.data_ptr();
  const void* const average = fresh.average.data_ptr();
  RunState run(folder_);
  fresh.add_to(run);
  EXPECT_TRUE(run.resume());
  EXPECT_TRUE(same(at::rand({3}), expected));
  EXPECT_TRUE(same(fresh.model->weight.detach(), saved.model->weight.detach()));
  EXPECT_EQ(fresh.model->weight.data_ptr(), weight);
  EXPECT_EQ(fresh.optimizer.state().size(), 2u);
  EXPECT_EQ(fresh.scaler.get_scale(), 512);
  EXPECT_EQ(fresh.sampler.consumed(), 4);
  EXPECT_TRUE(same(fresh.average, saved.average));
  EXPECT_EQ(fresh.average.data_ptr(), average);
  EXPECT_EQ(fresh.step, 12);
  EXPECT_EQ(fresh.best, 0.1);
  EXPECT_TRUE(fresh.warm);
  EXPECT_EQ(fresh.name, "run \n\"ä\"");
}

/// A loop of random batches through all stages of a step.
struct SteppedLoop {
  torch::nn::Linear model{3, 2};
  FusedAdamW optimizer{model->parameters()};
  TrainingStep step{optimizer,
                    {.precision = Precision::fp16(),
                     .accumulate = Accumulate::batches(2),
                     .clip = clip::autoclip(30)}};

  void add_to(RunState& run) {
    run.add("model", *model).add("optimizer", optimizer, *model).add("step", step);
  }
  void train(int calls) {
    for (int i = 0; i < calls; ++i) {
      step([&] { return model->forward(at::rand({4, 3})).to(at::kFloat).square().mean(); });
    }
  }
};

TEST_F(RunStateTest, GoesOnBitForBitThroughATrainingStep) {
  SteppedLoop whole;
  {
    RunState run(folder_);
    whole.add_to(run);
    whole.train(6);
    run.save();
    whole.train(1);
    EXPECT_THROW(run.save(), c10::Error);  // inside a window, whose gradients would be lost
    whole.train(3);
  }
  SteppedLoop resumed;
  RunState run(folder_);
  resumed.add_to(run);
  ASSERT_TRUE(run.resume());
  EXPECT_EQ(resumed.step.steps(), 3);
  resumed.train(4);
  EXPECT_TRUE(same(resumed.model->weight.detach(), whole.model->weight.detach()));
  EXPECT_TRUE(same(resumed.model->bias.detach(), whole.model->bias.detach()));
}

TEST_F(RunStateTest, HasNothingToResumeAtFirst) {
  RunState run(folder_);
  EXPECT_FALSE(run.resume());
  EXPECT_EQ(newest_run(folder_), std::nullopt);
  EXPECT_EQ(newest_run(folder_ / "elsewhere"), std::nullopt);
}

TEST_F(RunStateTest, NumbersFilesAndKeepsTheNewest) {
  int64_t value = 0;
  RunState run(folder_, {.keep = 2});
  run.add("value", value);
  std::ofstream(file("notes.txt")) << "mine";
  run.save();
  run.save();
  run.save(10);
  run.save(10);  // replaces
  run.save();
  EXPECT_EQ(files(),
            (std::vector<std::string>{".torchlore-lock", "notes.txt", "step-00000010.safetensors",
                                      "step-00000011.safetensors"}));
  EXPECT_EQ(run.save(1234567890), file("step-1234567890.safetensors"));
  EXPECT_EQ(newest_run(folder_)->step, 1234567890);
}

TEST_F(RunStateTest, ResumesFromTheNewestAgainAndAgain) {
  int64_t value = 1;
  RunState run(folder_);
  run.add("value", value);
  run.save();
  value = 2;
  run.save();
  for (int i = 0; i < 2; ++i) {
    value = 3;
    EXPECT_TRUE(run.resume());
    EXPECT_EQ(value, 2);
  }
}

TEST_F(RunStateTest, TellsAboutTheNewestFile) {
  int64_t value = 0;
  RunState run(folder_);
  run.add("value", value);
  run.save(7);
  const auto info = newest_run(folder_);
  ASSERT_TRUE(info.has_value());
  EXPECT_EQ(info->path, file("step-00000007.safetensors"));
  EXPECT_EQ(info->step, 7);
  EXPECT_EQ(info->time.size(), 20u);
  EXPECT_EQ(info->time.back(), 'Z');
  EXPECT_FALSE(info->torchlore_version.empty());
}

TEST_F(RunStateTest, RemovesWhatAKilledProcessLeft) {
  fs::create_directories(folder_);
  std::ofstream(file(".torchlore-4711-0.tmp")) << "half a file";
  save_counter(1);
  EXPECT_EQ(files(), (std::vector<std::string>{".torchlore-lock", "step-00000001.safetensors"}));
}

TEST_F(RunStateTest, RefusesOptionsOutOfRange) {
  EXPECT_EQ(message_of<c10::ValueError>([&] { RunState(folder_, {.keep = 0}); }),
            "RunStateOptions::keep must be 1 or more, but is 0");
  RunState run(folder_);
  EXPECT_EQ(message_of<c10::ValueError>([&] { run.save(-1); }),
            "step must be 0 or more, but is -1");
  run.save(5);
  EXPECT_EQ(message_of<c10::ValueError>([&] { run.save(4); }),
            "step must not lie below the newest file's, 5, but is 4");
}

TEST_F(RunStateTest, RefusesBadNames) {
  int64_t value = 0;
  RunState run(folder_);
  run.add("value", value);
  EXPECT_EQ(message_of<c10::ValueError>([&] { run.add("value", value); }),
            "'value' names two objects of the run; give each a name of its own");
  EXPECT_EQ(message_of<c10::ValueError>([&] { run.add("rng", value); }),
            "'rng' names two objects of the run; give each a name of its own");
  EXPECT_EQ(message_of<c10::ValueError>([&] { run.add("a/b", value); }),
            "a name of a run's object must not be empty or contain '/', but is 'a/b'");
  EXPECT_EQ(message_of<c10::ValueError>([&] { run.add("", value); }),
            "a name of a run's object must not be empty or contain '/', but is ''");
  run.resume();
  EXPECT_EQ(message_of<c10::ValueError>([&] { run.add("late", value); }),
            "'late' was added after resume() and would start anew; add everything first");
}

TEST_F(RunStateTest, RefusesWhatItCouldNotRestore) {
  torch::nn::Linear model(2, 2);
  torch::optim::LBFGS lbfgs(model->parameters());
  at::Tensor undefined;
  RunState run(folder_);
  EXPECT_EQ(message_of<c10::ValueError>([&] { run.add("t", undefined); }),
            "the tensor 't' is undefined; give it a value first");
  EXPECT_THROW(run.add("lbfgs", lbfgs, *model), c10::NotImplementedError);
}

TEST_F(RunStateTest, RefusesToMixTwoRuns) {
  save_counter(3);
  int64_t value = 0;
  RunState run(folder_);
  run.add("counter", value);
  EXPECT_EQ(
      generic(message_of<c10::ValueError>([&] { run.save(); })),
      "'FOLDER/step-00000003.safetensors' is of an earlier run; call resume() before the first "
      "save(), or choose another folder");
}

TEST_F(RunStateTest, RefusesAFolderInUse) {
  RunState run(folder_);
  EXPECT_EQ(generic(message_of<c10::ValueError>([&] { RunState(this->folder_); })),
            "the run folder 'FOLDER' is in use by process " + std::to_string(::getpid()) +
                "; end that run or choose another folder");
}

TEST_F(RunStateTest, FreesTheFolderWhenTheProcessIsKilled) {
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    RunState run(folder_);
    if (::write(ready[1], "x", 1) != 1) ::_exit(1);
    ::pause();
  }
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  EXPECT_EQ(generic(message_of<c10::ValueError>([&] { RunState(this->folder_); })),
            "the run folder 'FOLDER' is in use by process " + std::to_string(child) +
                "; end that run or choose another folder");
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  EXPECT_NO_THROW(RunState{folder_});
  ::close(ready[0]);
  ::close(ready[1]);
}

TEST_F(RunStateTest, NamesTheReasonWhenTheFolderCannotBeMade) {
  fs::create_directories(base_);
  std::ofstream(folder_) << "a file in the way";
  EXPECT_EQ(generic(message_of([&] { RunState(this->folder_); })),
            "cannot make the run folder 'FOLDER': Not a directory");
}

TEST_F(RunStateTest, RefusesAnotherModelsFileAndChangesNothing) {
  {
    torch::nn::Linear model(3, 2);
    int64_t step = 5, extra = 1;
    RunState run(folder_);
    run.add("model", *model).add("step", step).add("extra", extra);
    run.save();
  }
  torch::nn::Linear model(torch::nn::LinearOptions(4, 2).bias(false));
  const auto before = model->weight.detach().clone();
  double step = 0.5;
  bool flag = false;
  RunState run(folder_);
  run.add("model", *model).add("step", step).add("flag", flag);
  EXPECT_EQ(
      generic(message_of<c10::ValueError>([&] { run.resume(); })),
      "the run file 'FOLDER/step-00000001.safetensors' does not fit what was added, and nothing "
      "was changed; 5 differences:\n"
      "  model/weight: shape [2, 3] in the saved state, [2, 4] here\n"
      "  model/bias: only in the saved state\n"
      "  step/value: dtype Long in the saved state, Double here\n"
      "  flag: missing in the saved state\n"
      "  extra: only in the saved state\n"
      "Add the objects it was saved from, or choose another folder");
  EXPECT_TRUE(same(model->weight.detach(), before));
  EXPECT_EQ(step, 0.5);
}

TEST_F(RunStateTest, RefusesADamagedFile) {
  save_counter(1);
  const auto path = file("step-00000001.safetensors");
  fs::resize_file(path, fs::file_size(path) - 1);
  int64_t value = 7;
  RunState run(folder_);
  run.add("counter", value);
  const auto text = generic(message_of<c10::ValueError>([&] { run.resume(); }));
  EXPECT_TRUE(text.starts_with("cannot resume from 'FOLDER/step-00000001.safetensors': ")) << text;
  EXPECT_TRUE(text.ends_with("; remove or repair the file to resume from the one before it"))
      << text;
  EXPECT_EQ(value, 7);
  EXPECT_THROW(newest_run(folder_), c10::ValueError);
}

TEST_F(RunStateTest, RefusesAForeignFile) {
  fs::create_directories(folder_);
  const auto path = file("step-00000001.safetensors");
  write_tensors(path, {{"weight", at::ones({2})}}, {{"format", "pt"}});
  RunState run(folder_);
  EXPECT_EQ(
      generic(message_of<c10::ValueError>([&] { run.resume(); })),
      "cannot resume from 'FOLDER/step-00000001.safetensors': it is not a run file of torchlore; "
      "remove or repair the file to resume from the one before it");
  write_tensors(path, {}, {{"format", "torchlore.run"}, {"format_version", "2"}});
  EXPECT_EQ(generic(message_of<c10::ValueError>([&] { run.resume(); })),
            "cannot resume from 'FOLDER/step-00000001.safetensors': it has format version '2', and "
            "this torchlore reads '1'; remove or repair the file to resume from the one before it");
}

/// State whose own loader may refuse what has the right shape.
struct Picky {
  at::Tensor value = at::zeros({});
  StateDict state_dict() const { return {{"value", value}}; }
  void load_state_dict(const StateDict& state) {
    value = state.at("value").clone();
    TORCH_CHECK_VALUE(value.item<double>() < 5, "too large");
  }
};

TEST_F(RunStateTest, UndoesEverythingWhenAnObjectRefusesItsState) {
  int64_t step = 3;
  {
    Picky fine, picky;
    fine.value.fill_(1);
    picky.value.fill_(9);
    RunState run(folder_);
    run.add("step", step).add("fine", fine).add("picky", picky);
    run.save();
  }
  Picky fine, picky;
  step = 0;
  RunState run(folder_);
  run.add("step", step).add("fine", fine).add("picky", picky);
  at::manual_seed(1);
  const auto expected = at::rand({2});
  at::manual_seed(1);
  EXPECT_EQ(message_of<c10::ValueError>([&] { run.resume(); }), "too large");
  EXPECT_EQ(step, 0);
  EXPECT_EQ(fine.value.item<double>(), 0);
  EXPECT_EQ(picky.value.item<double>(), 0);
  EXPECT_TRUE(same(at::rand({2}), expected));
}

/// State that grows.
struct History {
  static constexpr bool state_layout_changes = true;
  StateDict values;
  StateDict state_dict() const { return values; }
  void load_state_dict(const StateDict& state) { values = state; }
};

/// The same without saying so.
struct SilentHistory {
  StateDict values;
  StateDict state_dict() const { return values; }
  void load_state_dict(const StateDict& state) { values = state; }
};

TEST_F(RunStateTest, AllowsStateThatGrowsWhereItIsDeclared) {
  {
    History first{{{"0", at::ones({2})}}};
    SilentHistory second{{{"0", at::ones({3})}}};
    RunState run(folder_);
    run.add("first", first).add("second", second);
    run.save();
  }
  History first;
  SilentHistory second;
  {
    RunState run(folder_);
    run.add("first", first).add("second", second);
    EXPECT_EQ(generic(message_of<c10::ValueError>([&] { run.resume(); })),
              "the run file 'FOLDER/step-00000001.safetensors' does not fit what was added, and "
              "nothing was changed; 1 difference:\n"
              "  second/0: only in the saved state\n"
              "Add the objects it was saved from, or choose another folder");
  }
  RunState run(folder_);
  run.add("first", first).add("second", second, StateLayout::changes);
  EXPECT_TRUE(run.resume());
  EXPECT_EQ(first.values.at("0").numel(), 2);
  EXPECT_EQ(second.values.at("0").numel(), 3);
}

TEST_F(RunStateTest, SavesAnObjectThatHasNoStateYet) {
  {
    History history;
    RunState run(folder_);
    run.add("history", history);
    run.save();
  }
  History history{{{"0", at::ones({2})}}};
  RunState run(folder_);
  run.add("history", history);
  EXPECT_TRUE(run.resume());
  EXPECT_TRUE(history.values.empty());
}

/// Files of this process can grow to `bytes` only: what a full disk looks like to a writer.
class FullDisk {
 public:
  explicit FullDisk(rlim_t bytes) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    handler_ = ::signal(SIGXFSZ, SIG_IGN);
  }
  ~FullDisk() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    ::signal(SIGXFSZ, handler_);
  }
  FullDisk(const FullDisk&) = delete;
  FullDisk& operator=(const FullDisk&) = delete;

 private:
  rlimit before_ = {};
  void (*handler_)(int) = nullptr;
};

TEST_F(RunStateTest, KeepsTheOldFilesWhenTheDiskIsFull) {
  torch::nn::Linear model(64, 64);
  RunState run(folder_, {.keep = 1});
  run.add("model", *model);
  run.save();
  const auto saved = model->weight.detach().clone();
  const_cast<at::Tensor&>(model->weight).detach().fill_(1);
  {
    const FullDisk full(4096);
    EXPECT_EQ(generic(message_of([&] { run.save(); })),
              "cannot write 'FOLDER/step-00000002.safetensors': writing its data failed: File too "
              "large");
  }
  EXPECT_EQ(files(), (std::vector<std::string>{".torchlore-lock", "step-00000001.safetensors"}));
  EXPECT_TRUE(run.resume());
  EXPECT_TRUE(same(model->weight.detach(), saved));
  EXPECT_EQ(run.save(), file("step-00000002.safetensors"));
}

}  // namespace
}  // namespace torchlore
