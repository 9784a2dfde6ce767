// Trains a small GPT on real text twice, from the same seed on the same batches: by a plain
// LibTorch loop (train_text/plain_side.hpp) and by the loop with torchlore
// (train_text/torchlore_side.hpp). Each side trains in a process of its own, so that its peak
// memory is its own.

#include <fmt/format.h>

#include <iostream>
#include <sstream>

#include "train_text/child.hpp"
#include "train_text/plain_side.hpp"
#include "train_text/plan.hpp"
#include "train_text/report.hpp"
#include "train_text/torchlore_side.hpp"
#include "train_text/train.hpp"

namespace text {
namespace {

const char* const kSides[] = {"plain", "torchlore"};

Corpus load_corpus(const Settings& s) {
  std::vector<std::string> names;
  std::istringstream lines(s.data);
  for (std::string name; std::getline(lines, name);) names.push_back(name);
  auto corpus = names.empty() ? read_headers(TORCHLORE_LIBTORCH_INCLUDE) : read_data(names);
  check_long_enough(corpus, s.context);
  fmt::print("Corpus: {} files, {:.1f} MB to train on, {:.1f} MB held out ({}).\n", corpus.files,
             static_cast<double>(corpus.training.size()) / 1e6,
             static_cast<double>(corpus.held_out.size()) / 1e6,
             corpus.held_out_files > 0 ? fmt::format("{} files", corpus.held_out_files)
                                       : "the end of each file");
  return corpus;
}

std::filesystem::path file(const Settings& s, const std::string& name) {
  return std::filesystem::path(s.run_dir) / name;
}

/// Makes room for a new run; never throws away one that is not finished.
void start_folder(const Settings& s, const Corpus& corpus) {
  std::filesystem::create_directories(s.run_dir);
  for (const auto* side : kSides) {
    const auto record = read_record(file(s, std::string(side) + ".record"));
    TORCH_CHECK_VALUE(
        !record || record->done, "\"", s.run_dir, "\" holds a run that is not ",
        "finished; go on with it by --resume, or remove it, or name another --run-dir");
  }
  for (const auto* side : kSides) {
    for (const auto* ending : {".record", ".pt", ".state"}) {
      std::filesystem::remove_all(file(s, std::string(side) + ending));
    }
  }
  replace_file(file(s, "corpus"), std::to_string(fingerprint(corpus)) + "\n");
}

void check_same_corpus(const Settings& s, const Corpus& corpus) {
  std::ifstream kept(file(s, "corpus"));
  uint64_t before = 0;
  TORCH_CHECK_VALUE(kept >> before && before == fingerprint(corpus),
                    "the corpus is not the one that the run in \"", s.run_dir,
                    "\" began with; bring it back, or start another run in another --run-dir");
}

std::vector<Record> finished(const Settings& s) {
  std::vector<Record> records;
  for (const auto* side : kSides) {
    const auto record = read_record(file(s, std::string(side) + ".record"));
    if (record && record->done) records.push_back(*record);
  }
  return records;
}

/// Decides what depends on the machine, once for the run: the precision, and how many steps fit.
void plan(Settings s, const Corpus& corpus) {
  if (s.precision == "auto") s.precision = faster_precision(Run(s, corpus));
  if (s.minutes > 0) s.steps = steps_that_fit(Run(s, corpus));
  write_settings(s, file(s, "settings"));
}

void train_side(const std::string& name, const Settings& s, const Corpus& corpus) {
  const Run run(s, corpus);
  if (name == "plain") {
    train<PlainSide>(run, name, std::nullopt);
  } else {
    train<TorchloreSide>(run, name, target_loss(finished(s)));
  }
}

/// The folder of a run that nobody named: kept, or with --quick a temporary one.
class RunFolder {
 public:
  explicit RunFolder(Settings& s) {
    if (!s.quick || s.run_dir != Settings{}.run_dir) return;
    std::string name = (std::filesystem::temp_directory_path() / "train_text.XXXXXX").string();
    TORCH_CHECK(mkdtemp(name.data()) != nullptr, "cannot make the folder \"", name, "\"");
    s.run_dir = temporary_ = name;
  }
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;
  ~RunFolder() {
    std::error_code ignored;
    if (!temporary_.empty()) std::filesystem::remove_all(temporary_, ignored);
  }

 private:
  std::string temporary_ = {};
};

int run(const Arguments& arguments) {
  auto s = apply(arguments);
  if (s.help) return print_help(std::cout), 0;
  const RunFolder folder(s);
  if (s.resume) s = resume_settings(read_settings(file(s, "settings")), arguments);
  watch_stop_signals();
  const auto corpus = load_corpus(s);
  if (s.resume) {
    check_same_corpus(s, corpus);
  } else {
    start_folder(s, corpus);
    in_child([&] { plan(s, corpus); });
    const auto planned = apply(read_settings(file(s, "settings")));
    s.steps = planned.steps;
    s.precision = planned.precision;
  }
  for (const auto* side : kSides) {
    if (!s.only.empty() && s.only != side) continue;
    in_child([&] { train_side(side, s, corpus); });
    if (stop_requested != 0) {
      fmt::print("Saved. Go on with: train_text --resume --run-dir {}\n", s.run_dir);
      return 130;
    }
  }
  const auto records = finished(s);
  print_report(records, s);
  print_sample(records.back());
  if (!s.json.empty()) replace_file(s.json, to_json(records, s));
  return 0;
}

}  // namespace
}  // namespace text

int main(int argc, char** argv) {
  try {
    return text::run(text::split_arguments({argv + 1, argv + argc}));
  } catch (const c10::Error& error) {
    std::cerr << "train_text: " << error.what_without_backtrace() << '\n';
  } catch (const std::exception& error) {
    std::cerr << "train_text: " << error.what() << '\n';
  }
  return 1;
}
