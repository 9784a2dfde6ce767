#pragma once

#include <c10/util/Exception.h>

#include <charconv>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iomanip>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

/// The options of the program: one table drives the parser, --help and what a run folder keeps.
namespace text {

struct Settings {
  int64_t steps = 400;
  double minutes = 3;
  int64_t layers = 4;
  int64_t width = 256;
  int64_t heads = 4;
  int64_t context = 128;
  int64_t batch = 8;
  int64_t accumulate = 2;
  double learning_rate = 2e-3;
  int64_t seed = 1;
  int64_t threads = 0;
  std::string device = "auto";
  std::string precision = "auto";
  std::string activations = "keep";
  std::string data = {};  ///< files and folders, one a line; empty: LibTorch's headers
  std::string run_dir = "runs/train_text";
  std::string only = {};
  std::string json = {};
  bool resume = false;
  bool quick = false;
  bool help = false;

  int64_t tokens_per_step() const { return batch * accumulate * context; }
};

/// One option. `fixed`: part of what a run is, kept in its folder and not to be changed by
/// --resume.
struct Option {
  std::string name;
  std::string value;  ///< what --help calls its value; empty for a switch
  std::string help;
  bool fixed;
  std::function<void(Settings&, const std::string&)> set;
  std::function<std::string(const Settings&)> get;
};

inline int64_t parse_whole(const std::string& name, const std::string& text, int64_t low) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  TORCH_CHECK_VALUE(error == std::errc() && end == text.data() + text.size() && value >= low, "--",
                    name, " must be a whole number of ", low, " or more, but is \"", text, "\"");
  return value;
}

inline double parse_number(const std::string& name, const std::string& text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  TORCH_CHECK_VALUE(error == std::errc() && end == text.data() + text.size() && value >= 0 &&
                        std::isfinite(value),
                    "--", name, " must be a number of 0 or more, but is \"", text, "\"");
  return value;
}

inline Option whole(std::string name, std::string help, int64_t Settings::*field, int64_t low = 1) {
  return {name,
          "N",
          std::move(help),
          true,
          [=](Settings& s, const std::string& text) { s.*field = parse_whole(name, text, low); },
          [=](const Settings& s) { return std::to_string(s.*field); }};
}

inline Option number(std::string name, std::string help, double Settings::*field) {
  return {name,
          "X",
          std::move(help),
          true,
          [=](Settings& s, const std::string& text) { s.*field = parse_number(name, text); },
          [=](const Settings& s) {
            char buffer[32];  // the shortest text that reads back as the same number
            return std::string(buffer, std::to_chars(buffer, buffer + 32, s.*field).ptr);
          }};
}

inline Option word(std::string name, std::string value, std::string help, bool fixed,
                   std::string Settings::*field, std::vector<std::string> allowed = {}) {
  const auto set = [=](Settings& s, const std::string& text) {
    std::string names;
    bool known = allowed.empty();
    for (const auto& each : allowed) {
      known = known || each == text;
      names += (names.empty() ? "" : ", ") + each;
    }
    TORCH_CHECK_VALUE(known, "--", name, " must be one of ", names, ", but is \"", text, "\"");
    s.*field = text;
  };
  return {name, value, std::move(help), fixed, set, [=](const Settings& s) { return s.*field; }};
}

/// A switch; in a run's folder it is yes or no.
inline Option flag(std::string name, std::string help, bool fixed, bool Settings::*field) {
  return {name,
          "",
          std::move(help),
          fixed,
          [=](Settings& s, const std::string& text) { s.*field = text != "no"; },
          [=](const Settings& s) { return std::string(s.*field ? "yes" : "no"); }};
}

inline const std::vector<Option>& options() {
  static const std::vector<Option> table = {
      whole("steps", "optimizer steps of each side", &Settings::steps),
      number("minutes", "fewer steps if both sides together would train longer; 0: no limit",
             &Settings::minutes),
      whole("layers", "blocks of the model", &Settings::layers),
      whole("width", "width of the model", &Settings::width),
      whole("heads", "attention heads; must divide the width", &Settings::heads),
      whole("context", "bytes the model sees at once", &Settings::context, 2),
      whole("batch", "windows in a micro-batch", &Settings::batch),
      whole("accumulate", "micro-batches in a step", &Settings::accumulate),
      number("learning-rate", "peak learning rate", &Settings::learning_rate),
      whole("seed", "of the weights and the order of the text", &Settings::seed, 0),
      whole("threads", "CPU threads; 0: as LibTorch chooses", &Settings::threads, 0),
      word("device", "NAME", "auto (an accelerator if there is one), cpu, cuda, cuda:1, ...", true,
           &Settings::device),
      word("precision", "NAME",
           "of the torchlore side: auto (bf16 if a short trial shows it faster), "
           "fp32, bf16",
           true, &Settings::precision, {"auto", "fp32", "bf16"}),
      word("activations", "NAME",
           "what the torchlore side keeps saved activations as: keep, bf16, fp16, int8", true,
           &Settings::activations, {"keep", "bf16", "fp16", "int8"}),
      word("data", "FILE...", "text files and folders; default: LibTorch's own C++ headers", true,
           &Settings::data),
      word("run-dir", "FOLDER", "where the run is kept", false, &Settings::run_dir),
      flag("resume", "go on with the run kept in the folder", false, &Settings::resume),
      word("only", "SIDE", "train one side only: plain or torchlore", false, &Settings::only,
           {"plain", "torchlore"}),
      word("json", "FILE", "write the result there too, with both curves", false, &Settings::json),
      flag("quick", "a tiny model and a few steps, to see that it works", true, &Settings::quick),
      flag("help", "this text", false, &Settings::help),
  };
  return table;
}

inline const Option& option_named(const std::string& name) {
  for (const auto& option : options()) {
    if (option.name == name) return option;
  }
  TORCH_CHECK_VALUE(false, "unknown option \"--", name, "\"; --help lists the options");
}

using Arguments = std::vector<std::pair<std::string, std::string>>;

/// `--name value`, `--name=value` and, for --data, several values: as pairs, in order.
inline Arguments split_arguments(const std::vector<std::string>& words) {
  Arguments arguments;
  for (size_t i = 0; i < words.size(); ++i) {
    TORCH_CHECK_VALUE(words[i].rfind("--", 0) == 0, "unexpected \"", words[i],
                      "\"; options begin with --, see --help");
    const auto equals = words[i].find('=');
    const auto name = words[i].substr(2, equals == std::string::npos ? equals : equals - 2);
    const auto& option = option_named(name);
    const auto is_value = [&](size_t at) {
      return at < words.size() && words[at].rfind("--", 0) != 0;
    };
    std::string value;
    if (equals != std::string::npos) {
      TORCH_CHECK_VALUE(!option.value.empty(), "--", name, " takes no value, but has \"",
                        words[i].substr(equals + 1), "\"");
      value = words[i].substr(equals + 1);
    } else if (!option.value.empty()) {
      TORCH_CHECK_VALUE(is_value(i + 1), "--", name, " needs a value (", option.value,
                        "): ", option.help);
      value = words[++i];
    }
    while (name == "data" && is_value(i + 1)) value += "\n" + words[++i];
    arguments.emplace_back(name, value);
  }
  return arguments;
}

inline void check(const Settings& s) {
  TORCH_CHECK_VALUE(s.width % s.heads == 0, "--width ", s.width, " is not a multiple of --heads ",
                    s.heads, "; choose a width that the heads divide");
}

/// What --quick stands for; options named beside it win.
inline void make_quick(Settings& s) {
  s.steps = 8;
  s.layers = 2;
  s.width = 64;
  s.heads = 2;
  s.context = 32;
  s.batch = 4;
  s.threads = 1;
}

inline Settings apply(const Arguments& arguments) {
  Settings s;
  for (const auto& [name, value] : arguments) {
    if (name == "quick" && value != "no") make_quick(s);
  }
  for (const auto& [name, value] : arguments) option_named(name).set(s, value);
  check(s);
  return s;
}

/// Keeps the options that make the run what it is.
inline void write_settings(const Settings& s, const std::filesystem::path& path) {
  std::ofstream file(path);
  for (const auto& option : options()) {
    if (option.fixed) file << option.name << '=' << std::quoted(option.get(s)) << '\n';
  }
  TORCH_CHECK(file.flush(), "cannot write \"", path.string(), "\"; is the disk full?");
}

inline Arguments read_settings(const std::filesystem::path& path) {
  std::ifstream file(path);
  TORCH_CHECK_VALUE(file, "there is no run to resume in \"", path.parent_path().string(),
                    "\"; name its folder by --run-dir, or leave --resume out");
  Arguments arguments;
  std::string name, value;
  while (std::getline(file, name, '=') && file >> std::quoted(value) >> std::ws) {
    arguments.emplace_back(name, value);
  }
  return arguments;
}

/// The settings of a kept run, with what may change taken from the command line.
/// @throws c10::ValueError if the command line contradicts the run.
inline Settings resume_settings(const Arguments& kept, const Arguments& arguments) {
  auto settings = apply(kept);
  for (const auto& [name, value] : arguments) {
    const auto& option = option_named(name);
    const auto before = option.get(settings);
    option.set(settings, value);
    TORCH_CHECK_VALUE(!option.fixed || option.get(settings) == before, "this run has --", name,
                      " \"", before, "\", not \"", option.get(settings), "\"; leave the option ",
                      "out, or start another run in another --run-dir");
  }
  return settings;
}

inline void print_help(std::ostream& out) {
  out << "Trains a small GPT on real text twice, from the same seed on the same batches: by a "
         "plain\n"
         "LibTorch loop, and by the loop with torchlore. Ends with a table and a sample of "
         "text.\n\n"
         "Usage: train_text [options]\n\n";
  const Settings defaults;
  for (const auto& option : options()) {
    const auto value = option.get(defaults);
    out << "  " << std::left << std::setw(26)
        << "--" + option.name + (option.value.empty() ? "" : " " + option.value) << option.help
        << (option.value.empty() || value.empty() ? "" : " (" + value + ")") << '\n';
  }
  out << "\nCtrl-C saves and ends; --resume goes on. A second Ctrl-C ends at once.\n";
}

}  // namespace text
