#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <limits>

#include "layout_patterns.hpp"
#include "mask_json.hpp"
#include "torchlore/core/tensor_file.hpp"

/// BlockLayout on disk: a safetensors file with the rows of each pattern; the transpose and the bits
/// the other way round are made anew.
namespace torchlore {
namespace {

using detail::LayoutPatterns;

constexpr const char* kFormat = "torchlore.block_layout";
constexpr const char* kVersion = "1";

template <typename T>
at::Tensor as_tensor(const std::vector<T>& values, at::ScalarType dtype) {
  auto* data = const_cast<T*>(values.data());  // only read: the tensor is written to a file
  return at::from_blob(data, {static_cast<int64_t>(values.size())}, at::dtype(dtype));
}

at::Tensor bits_tensor(const TileLayout& layout) {
  auto bits = at::empty({static_cast<int64_t>(layout.bits.size()), 64}, at::kLong);
  auto* out = bits.mutable_data_ptr<int64_t>();
  for (const auto& tile : layout.bits) {
    for (const uint64_t word : tile.by_query) *out++ = static_cast<int64_t>(word);
  }
  return bits;
}

std::string name_of(size_t pattern, const char* what) {
  return "pattern/" + std::to_string(pattern) + "/" + what;
}

/// What was read, with the file's name in every error.
class Reader {
 public:
  Reader(const std::filesystem::path& path, StateDict tensors)
      : path_(path), tensors_(std::move(tensors)) {}

  template <typename... Text>
  void check(bool condition, const Text&... text) const {
    TORCH_CHECK_VALUE(condition, "'", path_.string(), "' holds no sound layout: ", text...);
  }

  std::shared_ptr<const LayoutPatterns> patterns() const {
    auto patterns = std::make_shared<LayoutPatterns>();
    const auto sizes = numbers<int64_t>("sizes", at::kLong);
    check(sizes.size() == 7, "it has ", sizes.size(), " sizes instead of 7");
    patterns->queries = sizes[0];
    patterns->keys = sizes[1];
    patterns->block_size = sizes[2];
    patterns->batch = sizes[3];
    patterns->heads = sizes[4];
    patterns->own_batch = sizes[5];
    patterns->own_heads = sizes[6];
    patterns->index = numbers<int32_t>("index", at::kInt);
    check_sizes(*patterns);
    int32_t count = 0;
    for (const int32_t index : patterns->index) {
      check(index >= 0 && index <= count, "pattern ", index, " is out of order");
      count = std::max(count, index + 1);
    }
    for (int32_t i = 0; i < count; ++i) {
      patterns->patterns.push_back(pattern(static_cast<size_t>(i), *patterns));
    }
    return patterns;
  }

  /// The mask that the tiles were built of.
  MaskSpec mask(const std::string& text, const LayoutPatterns& of) const {
    try {
      auto spec = detail::mask_from_json(text, tensors_);
      detail::check_fits(spec.node(), of.queries, of.keys, of.batch, of.heads);
      return spec;
    } catch (const c10::ValueError& error) {
      check(false, error.what_without_backtrace());
      throw;
    }
  }

 private:
  const at::Tensor& tensor(const std::string& name, at::ScalarType dtype, int64_t dims) const {
    const auto found = tensors_.find(name);
    check(found != tensors_.end(), "there is no tensor '", name, "'");
    check(found->second.scalar_type() == dtype && found->second.dim() == dims, "'", name,
          "' has another dtype or shape");
    return found->second;
  }

  template <typename T>
  std::vector<T> numbers(const std::string& name, at::ScalarType dtype) const {
    const auto values = tensor(name, dtype, 1).contiguous();
    const T* data = values.const_data_ptr<T>();
    return {data, data + values.numel()};
  }

  void check_sizes(const LayoutPatterns& of) const {
    const int64_t most = std::numeric_limits<int32_t>::max();
    check(of.queries >= 0 && of.queries <= most && of.keys >= 0 && of.keys <= most,
          "a length is out of range");
    check(of.block_size == 32 || of.block_size == 64 || of.block_size == 128, "its block size is ",
          of.block_size);
    check(of.batch >= 1 && of.heads >= 1 && (of.own_batch == 1 || of.own_batch == of.batch) &&
              (of.own_heads == 1 || of.own_heads == of.heads) && of.own_batch <= most &&
              of.own_heads <= most,
          "its batch or heads are out of range");
    check(static_cast<int64_t>(of.index.size()) == of.own_batch * of.own_heads,
          "its index is for another batch or number of heads");
  }

  TileLayout pattern(size_t number, const LayoutPatterns& of) const {
    TileLayout layout;
    layout.queries = of.queries;
    layout.keys = of.keys;
    layout.tile = std::min<int64_t>(of.block_size, 64);
    layout.row_start = numbers<int32_t>(name_of(number, "row_start"), at::kInt);
    layout.column = numbers<int32_t>(name_of(number, "column"), at::kInt);
    layout.kind = numbers<int32_t>(name_of(number, "kind"), at::kInt);
    const auto bits = tensor(name_of(number, "bits"), at::kLong, 2).contiguous();
    check(bits.size(1) == 64, "bits have ", bits.size(1), " words instead of 64");
    const auto* words = reinterpret_cast<const uint64_t*>(bits.const_data_ptr<int64_t>());
    for (int64_t i = 0; i < bits.size(0); ++i) {
      detail::Words by_query{};
      std::copy_n(words + 64 * i, 64, by_query.begin());
      layout.bits.push_back({.by_key = detail::transposed(by_query), .by_query = by_query});
    }
    check_tiles(layout);
    detail::transpose_tiles(layout);
    return layout;
  }

  void check_tiles(const TileLayout& layout) const {
    const int64_t rows = detail::tiles_of(layout.queries, layout.tile);
    const int64_t columns = detail::tiles_of(layout.keys, layout.tile);
    const auto entries = static_cast<int64_t>(layout.column.size());
    const auto& start = layout.row_start;
    check(static_cast<int64_t>(start.size()) == rows + 1 && start.front() == 0 &&
              std::is_sorted(start.begin(), start.end()) && start.back() == entries &&
              static_cast<int64_t>(layout.kind.size()) == entries,
          "its rows do not fit its tiles");
    int64_t last_row = -1, last_column = -1;
    detail::for_each_tile(layout, [&](int64_t row, int64_t column, int32_t kind) {
      check((row != last_row ? column >= 0 : column > last_column) && column < columns,
            "the columns of row ", row, " are not ascending");
      check(kind >= TileLayout::kFull && kind < static_cast<int64_t>(layout.bits.size()), "tile ",
            row, ", ", column, " has no bits");
      if (kind != TileLayout::kFull) check_bits(layout, row, column, kind);
      last_row = row;
      last_column = column;
    });
  }

  /// Kernels trust that no bit lies past the end of a sequence.
  void check_bits(const TileLayout& layout, int64_t row, int64_t column, int32_t kind) const {
    const auto queries = detail::span_of_tile(row, layout.tile, layout.queries).size();
    const auto keys = detail::span_of_tile(column, layout.tile, layout.keys).size();
    const uint64_t allowed = detail::bits_of({0, keys});
    const auto& words = layout.bits[static_cast<size_t>(kind)].by_query;
    uint64_t inside = 0, outside = 0;
    for (int64_t i = 0; i < 64; ++i) {
      const uint64_t word = words[static_cast<size_t>(i)];
      inside |= word;
      outside |= i < queries ? word & ~allowed : word;
    }
    check(inside != 0 && outside == 0, "the bits of tile ", row, ", ", column,
          " are empty or lie past the end");
  }

  const std::filesystem::path& path_;
  StateDict tensors_;
};

/// Whether the pair is visible.
bool tile_shows(const TileLayout& layout, int64_t query, int64_t key) {
  const auto row = static_cast<size_t>(query / layout.tile);
  const auto begin = layout.column.begin() + layout.row_start[row];
  const auto end = layout.column.begin() + layout.row_start[row + 1];
  const auto found = std::lower_bound(begin, end, key / layout.tile);
  if (found == end || *found != key / layout.tile) return false;
  const int32_t kind = layout.kind[static_cast<size_t>(found - layout.column.begin())];
  if (kind == TileLayout::kFull) return true;
  const auto& bits = layout.bits[static_cast<size_t>(kind)];
  return (bits.by_query[static_cast<size_t>(query % layout.tile)] >> (key % layout.tile) & 1) != 0;
}

/// A mask that looks pairs up in tiles, for layouts whose predicate is gone.
MaskSpec lookup(const std::shared_ptr<const LayoutPatterns>& patterns) {
  const auto visible = [patterns](int64_t query, int64_t key, const Where& where) {
    TORCH_CHECK_VALUE(where.queries == patterns->queries && where.keys == patterns->keys,
                      "the mask was read from a file for ", patterns->queries, " queries and ",
                      patterns->keys, " keys, but is asked for ", where.queries, " and ",
                      where.keys);
    TORCH_CHECK_VALUE((patterns->own_batch == 1 || where.batch < patterns->own_batch) &&
                          (patterns->own_heads == 1 || where.head < patterns->own_heads),
                      "the mask was read from a file for ", patterns->batch, " batch entries and ",
                      patterns->heads, " heads, but is asked for batch entry ", where.batch,
                      " and head ", where.head);
    return tile_shows(patterns->at(where.batch, where.head), query, key);
  };
  return mask::predicate(visible, {.per_batch = patterns->own_batch > 1,
                                   .per_head = patterns->own_heads > 1,
                                   .name = "loaded"});
}

}  // namespace

void BlockLayout::save(const std::filesystem::path& path) const {
  StateDict tensors;
  Metadata metadata = {{"format", kFormat}, {"version", kVersion}};
  const auto& of = *patterns_;
  const std::vector<int64_t> sizes = {of.queries, of.keys,      of.block_size, of.batch,
                                      of.heads,   of.own_batch, of.own_heads};
  tensors["sizes"] = as_tensor(sizes, at::kLong);
  tensors["index"] = as_tensor(of.index, at::kInt);
  for (size_t i = 0; i < of.patterns.size(); ++i) {
    const auto& layout = of.patterns[i];
    tensors[name_of(i, "row_start")] = as_tensor(layout.row_start, at::kInt);
    tensors[name_of(i, "column")] = as_tensor(layout.column, at::kInt);
    tensors[name_of(i, "kind")] = as_tensor(layout.kind, at::kInt);
    tensors[name_of(i, "bits")] = bits_tensor(layout);
  }
  if (!detail::has_predicate(spec_.node())) {
    metadata["mask"] = detail::mask_to_json(spec_, tensors);
  }
  write_tensors(path, tensors, metadata);
}

BlockLayout BlockLayout::load(const std::filesystem::path& path) {
  const auto file = TensorFile::open(path);
  const auto& metadata = file.metadata();
  const Reader reader(path, file.tensors());
  const auto says = [&](const char* key, const char* value) {
    const auto found = metadata.find(key);
    return found != metadata.end() && found->second == value;
  };
  reader.check(says("format", kFormat), "it was not written by BlockLayout::save");
  reader.check(says("version", kVersion), "it was written by another version");
  auto patterns = reader.patterns();
  const auto mask = metadata.find("mask");
  auto spec = mask == metadata.end() ? lookup(patterns) : reader.mask(mask->second, *patterns);
  const detail::LayoutCache::Key key{patterns->queries, patterns->keys, patterns->block_size,
                                     patterns->batch, patterns->heads};
  spec.node().layouts.keep(key, patterns);
  return {std::move(spec), std::move(patterns)};
}

}  // namespace torchlore
