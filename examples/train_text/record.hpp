#pragma once

#include <c10/util/Exception.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iomanip>
#include <iterator>
#include <limits>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

namespace text {

/// One evaluation: after how many steps and seconds of training, and the loss in nats a byte.
struct Point {
  int64_t step = 0;
  double seconds = 0;
  double loss = 0;
};

/// What one side has done so far; kept in the run folder.
struct Record {
  std::string side;
  std::string precision = "fp32";
  bool done = false;
  int64_t step = 0;
  double seconds = 0;
  int64_t peak_memory = 0;  ///< bytes
  int64_t parameters = 0;
  std::vector<Point> curve = {};
  std::string sample = {};
};

/// When the curve first reaches `loss`, by straight lines between evaluations.
inline std::optional<double> seconds_to(const Record& record, double loss) {
  for (size_t i = 0; i < record.curve.size(); ++i) {
    const auto& here = record.curve[i];
    if (here.loss > loss) continue;
    if (i == 0) return here.seconds;
    const auto& before = record.curve[i - 1];
    const double part = (before.loss - loss) / (before.loss - here.loss);
    return before.seconds + part * (here.seconds - before.seconds);
  }
  return std::nullopt;
}

/// Writes a small file whole or not at all.
inline void replace_file(const std::filesystem::path& path, const std::string& bytes) {
  const auto temporary = path.string() + ".new";
  {
    std::ofstream file(temporary, std::ios::binary);
    file << bytes;
    TORCH_CHECK(file.flush(), "cannot write \"", temporary, "\"; is the disk full?");
  }
  std::filesystem::rename(temporary, path);
}

inline void write_record(const Record& r, const std::filesystem::path& path) {
  std::ostringstream out;
  out << std::setprecision(std::numeric_limits<double>::max_digits10);
  out << r.side << ' ' << r.precision << ' ' << r.done << ' ' << r.step << ' ' << r.seconds << ' '
      << r.peak_memory << ' ' << r.parameters << ' ' << r.curve.size() << '\n';
  for (const auto& point : r.curve) {
    out << point.step << ' ' << point.seconds << ' ' << point.loss << '\n';
  }
  out << r.sample;
  replace_file(path, out.str());
}

/// Nothing if the file is not there.
inline std::optional<Record> read_record(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return std::nullopt;
  Record r;
  size_t points = 0;
  file >> r.side >> r.precision >> r.done >> r.step >> r.seconds >> r.peak_memory >> r.parameters >>
      points;
  for (Point point; points > 0 && file >> point.step >> point.seconds >> point.loss; --points) {
    r.curve.push_back(point);
  }
  TORCH_CHECK_VALUE(file && points == 0, "\"", path.string(),
                    "\" is damaged; remove the run's folder and start again");
  file.ignore(1);
  r.sample.assign(std::istreambuf_iterator<char>(file), {});
  return r;
}

}  // namespace text
