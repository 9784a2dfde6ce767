#include <bit>
#include <cmath>
#include <iomanip>
#include <sstream>

#include "layout_patterns.hpp"

/// Pictures of a BlockLayout: cells of equal size, shaded by the share of their pairs that is visible.
namespace torchlore {
namespace {

using detail::Span;

/// The shares of all cells.
struct Picture {
  int64_t rows = 0;
  int64_t columns = 0;
  std::vector<double> shares;  // [rows, columns]

  double at(int64_t row, int64_t column) const {
    return shares[static_cast<size_t>(row * columns + column)];
  }
};

/// The side of a cell, so that at most `columns` of them cover the keys. Cells below a tile divide it,
/// larger ones are whole tiles: no tile is cut by a cell's edge.
int64_t cell_side(int64_t keys, int64_t tile, int64_t columns) {
  const int64_t least = std::max<int64_t>(1, (keys + columns - 1) / columns);
  if (least <= tile) return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(least)));
  return (least + tile - 1) / tile * tile;
}

/// The visible pairs of each cell that a tile touches, added to `counts`.
class Counter {
 public:
  Counter(const TileLayout& layout, int64_t side, Picture& picture)
      : layout_(layout), side_(side), picture_(picture) {}

  void add(int64_t row, int64_t column, int32_t kind) {
    const Span queries = detail::span_of_tile(row, layout_.tile, layout_.queries);
    const Span keys = detail::span_of_tile(column, layout_.tile, layout_.keys);
    const int64_t step = std::min(side_, layout_.tile);
    for (int64_t query = queries.begin; query < queries.end; ++query) {
      const uint64_t word = kind == TileLayout::kFull
                                ? detail::shared_bits(keys, keys)
                                : layout_.bits[static_cast<size_t>(kind)]
                                      .by_query[static_cast<size_t>(query - queries.begin)];
      for (int64_t key = keys.begin; key < keys.end; key += step) {
        const uint64_t part = word & detail::shared_bits({key, key + step}, keys);
        const auto cell = static_cast<size_t>(query / side_ * picture_.columns + key / side_);
        picture_.shares[cell] += std::popcount(part);
      }
    }
  }

 private:
  const TileLayout& layout_;
  int64_t side_;
  Picture& picture_;
};

Picture picture_of(const TileLayout& layout, int64_t columns) {
  const int64_t side = cell_side(layout.keys, layout.tile, columns);
  Picture picture;
  picture.rows = detail::tiles_of(layout.queries, side);
  picture.columns = detail::tiles_of(layout.keys, side);
  picture.shares.assign(static_cast<size_t>(picture.rows * picture.columns), 0);
  Counter counter(layout, side, picture);
  detail::for_each_tile(
      layout, [&](int64_t row, int64_t column, int32_t kind) { counter.add(row, column, kind); });
  for (int64_t row = 0; row < picture.rows; ++row) {
    for (int64_t column = 0; column < picture.columns; ++column) {
      const int64_t pairs = detail::span_of_tile(row, side, layout.queries).size() *
                            detail::span_of_tile(column, side, layout.keys).size();
      picture.shares[static_cast<size_t>(row * picture.columns + column)] /=
          static_cast<double>(pairs);
    }
  }
  return picture;
}

int64_t columns_of(const DrawOptions& options, int64_t otherwise) {
  TORCH_CHECK_VALUE(options.columns >= 0, "columns must be 0 or more, but is ", options.columns);
  return options.columns == 0 ? otherwise : options.columns;
}

char shade(double share) {
  if (share == 0) return ' ';
  if (share == 1) return '#';
  return share < 0.25 ? '.' : share < 0.5 ? ':' : '+';
}

/// Text between the tags of XML.
std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '&') {
      out += "&amp;";
    } else if (c == '<') {
      out += "&lt;";
    } else {
      out += c;
    }
  }
  return out;
}

/// How dark a cell is, in hundredths; the faintest can still be seen.
int darkness(double share) {
  return share == 0 ? 0 : static_cast<int>(std::lround(15 + 85 * share));
}

/// One rectangle for each run of equal cells of a row.
void draw_row(std::ostream& out, const Picture& picture, int64_t row) {
  for (int64_t begin = 0, end = 0; begin < picture.columns; begin = end) {
    const int dark = darkness(picture.at(row, begin));
    while (end < picture.columns && darkness(picture.at(row, end)) == dark) ++end;
    if (dark == 0) continue;
    out << "<rect x=\"" << begin << "\" y=\"" << row << "\" width=\"" << end - begin
        << "\" height=\"1\" fill-opacity=\"" << dark / 100 << '.' << std::setw(2)
        << std::setfill('0') << dark % 100 << "\"/>\n";
  }
}

}  // namespace

std::string BlockLayout::draw_text(const DrawOptions& options) const {
  const auto picture = picture_of(pattern(options.batch, options.head), columns_of(options, 64));
  std::string text;
  for (int64_t row = 0; row < picture.rows; ++row) {
    for (int64_t column = 0; column < picture.columns; ++column) {
      text += shade(picture.at(row, column));
    }
    text += '\n';
  }
  return text;
}

std::string BlockLayout::draw_svg(const DrawOptions& options) const {
  const auto picture = picture_of(pattern(options.batch, options.head), columns_of(options, 256));
  std::ostringstream out;
  out << "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 " << picture.columns << ' '
      << picture.rows << "\" shape-rendering=\"crispEdges\">\n<title>" << escaped(to_string(spec_))
      << ", " << queries() << " x " << keys() << "</title>\n"
      << "<rect width=\"100%\" height=\"100%\" fill=\"#f4f4f4\"/>\n<g fill=\"#123a6b\">\n";
  for (int64_t row = 0; row < picture.rows; ++row) draw_row(out, picture, row);
  out << "</g>\n</svg>\n";
  return out.str();
}

}  // namespace torchlore
