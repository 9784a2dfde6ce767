#include "tensor_file_header.hpp"

#include <c10/util/Exception.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "tensor_file_dtype.hpp"

namespace torchlore::detail {
namespace {

static_assert(std::endian::native == std::endian::little,
              "safetensors files are little-endian; this machine is not");

/// Takes the events of the JSON parser and accepts exactly the shape of a safetensors header. The
/// depth is bounded by the shape, and nothing is stored that was not checked. The first thing that
/// is wrong stops the parser.
class HeaderReader {
 public:
  const std::string& error() const { return error_; }
  std::map<std::string, TensorInfo>& infos() { return infos_; }
  Metadata& metadata() { return metadata_; }

  bool null() { return unexpected("null"); }
  bool boolean(bool) { return unexpected("a boolean"); }
  bool number_integer(int64_t) { return unexpected("a negative number"); }
  bool number_float(double, const std::string&) {
    return unexpected("a number that is no whole 64-bit one");
  }
  bool binary(nlohmann::json::binary_t&) { return unexpected("binary data"); }

  bool number_unsigned(uint64_t value) {
    if (place_ == Place::shape) {
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        return fail(c10::str("tensor ", in_quotes(name_), " has a size of ", value,
                             ", more than 64 signed bits hold"));
      }
      info_.shape.push_back(static_cast<int64_t>(value));
      return true;
    }
    if (place_ == Place::offsets) {
      if (offsets_ == 0) info_.begin = value;
      if (offsets_ == 1) info_.end = value;
      ++offsets_;
      return offsets_ <= 2 || fail(wrong_offsets());
    }
    return unexpected("a number");
  }

  bool string(std::string& value) {
    if (place_ == Place::metadata) {
      metadata_[key_] = std::move(value);
      return true;
    }
    if (place_ == Place::tensor && key_ == "dtype") {
      info_.format_dtype = std::move(value);
      return true;
    }
    return unexpected("a string");
  }

  bool start_object(size_t) {
    if (place_ == Place::outside) {
      place_ = Place::root;
      return true;
    }
    if (place_ != Place::root) return unexpected("an object");
    place_ = key_ == kMetadataKey ? Place::metadata : Place::tensor;
    name_ = key_;
    info_ = {};
    fields_.clear();
    offsets_ = 0;
    return true;
  }

  bool key(std::string& value) {
    key_ = std::move(value);
    if (place_ == Place::root) {
      return names_.insert(key_).second ||
             fail(c10::str("its header has ", in_quotes(key_), " twice"));
    }
    if (place_ == Place::metadata) {
      return !metadata_.contains(key_) ||
             fail(c10::str("its metadata has ", in_quotes(key_), " twice"));
    }
    if (key_ != "dtype" && key_ != "shape" && key_ != "data_offsets") {
      return fail(c10::str("tensor ", in_quotes(name_), " has an unknown field ", in_quotes(key_)));
    }
    return fields_.insert(key_).second ||
           fail(
               c10::str("tensor ", in_quotes(name_), " has the field ", in_quotes(key_), " twice"));
  }

  bool end_object() {
    if (place_ == Place::tensor) {
      for (const char* field : {"dtype", "shape", "data_offsets"}) {
        if (!fields_.contains(field)) {
          return fail(c10::str("tensor ", in_quotes(name_), " lacks the field '", field, "'"));
        }
      }
      infos_.emplace(name_, std::move(info_));
    }
    place_ = place_ == Place::root ? Place::outside : Place::root;
    return true;
  }

  bool start_array(size_t) {
    if (place_ != Place::tensor || key_ == "dtype") return unexpected("an array");
    place_ = key_ == "shape" ? Place::shape : Place::offsets;
    return true;
  }

  bool end_array() {
    if (place_ == Place::offsets && offsets_ != 2) return fail(wrong_offsets());
    place_ = Place::tensor;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception&) {
    return fail(c10::str("its header is not JSON at byte ", position, " of it"));
  }

 private:
  enum class Place { outside, root, metadata, tensor, shape, offsets };

  bool fail(std::string reason) {
    error_ = std::move(reason);
    return false;
  }

  std::string wrong_offsets() const {
    return c10::str("tensor ", in_quotes(name_), " must have two data_offsets, begin and end");
  }

  /// A value of a kind that its place does not allow.
  bool unexpected(const std::string& kind) {
    switch (place_) {
      case Place::outside:
        return fail(c10::str("its header must be one JSON object, but is ", kind));
      case Place::root:
        return fail(
            c10::str("the header's entry ", in_quotes(key_), " must be an object, but is ", kind));
      case Place::metadata:
        return fail(
            c10::str("the metadata's ", in_quotes(key_), " must be a string, but is ", kind));
      case Place::tensor:
        return fail(c10::str("tensor ", in_quotes(name_), " has ", kind, " as its ", key_));
      case Place::shape:
      case Place::offsets:
        return fail(c10::str("tensor ", in_quotes(name_), " has ", kind, " in its ", key_));
    }
    return false;
  }

  Place place_ = Place::outside;
  std::string key_, name_, error_;
  TensorInfo info_;
  int offsets_ = 0;
  std::set<std::string> names_, fields_;
  std::map<std::string, TensorInfo> infos_;
  Metadata metadata_;
};

/// The bytes that the shape takes; an empty text in `error` if all is well.
uint64_t byte_count(const TensorInfo& info, uint64_t bits, std::string& error) {
  // LibTorch's strides count an empty dimension as 1, so that must fit as well.
  int64_t extent = 1;
  bool empty = false;
  for (const int64_t size : info.shape) {
    empty |= size == 0;
    if (__builtin_mul_overflow(extent, std::max<int64_t>(size, 1), &extent)) {
      error = "has a shape whose number of elements overflows";
      return 0;
    }
  }
  uint64_t total_bits = 0;
  if (__builtin_mul_overflow(static_cast<uint64_t>(extent), bits, &total_bits)) {
    error = "has a shape whose number of bytes overflows";
    return 0;
  }
  if (empty) return 0;
  if (total_bits % 8 != 0) error = "does not end at a whole byte";
  return total_bits / 8;
}

/// What is wrong with one tensor; empty if nothing.
std::string check_tensor(TensorInfo& info, uint64_t data_bytes) {
  const auto* dtype = find_dtype(info.format_dtype);
  if (dtype == nullptr) return c10::str("has an unknown dtype ", in_quotes(info.format_dtype));
  info.dtype = dtype->dtype;
  std::string error;
  const uint64_t bytes = byte_count(info, dtype->bits, error);
  if (!error.empty()) return error;
  if (info.begin > info.end) {
    return c10::str("begins at byte ", info.begin, " and ends before it, at ", info.end);
  }
  if (info.end > data_bytes) {
    return c10::str("ends at byte ", info.end, ", but the file holds only ", data_bytes,
                    " bytes of data: it is cut off");
  }
  if (info.end - info.begin != bytes) {
    return c10::str("takes ", info.end - info.begin, " bytes, but its dtype and shape make ",
                    bytes);
  }
  return "";
}

/// What is wrong with where the tensors lie; empty if they cover the data exactly.
std::string check_cover(const std::map<std::string, TensorInfo>& infos, uint64_t data_bytes) {
  std::vector<const std::pair<const std::string, TensorInfo>*> order;
  order.reserve(infos.size());
  for (const auto& entry : infos) order.push_back(&entry);
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return std::pair(a->second.begin, a->second.end) < std::pair(b->second.begin, b->second.end);
  });
  uint64_t covered = 0;
  const std::string* previous = nullptr;
  for (const auto* entry : order) {
    if (entry->second.begin < covered) {
      return c10::str("tensors ", in_quotes(*previous), " and ", in_quotes(entry->first),
                      " overlap");
    }
    if (entry->second.begin > covered) {
      return c10::str("bytes ", covered, " to ", entry->second.begin,
                      " of its data belong to no tensor");
    }
    covered = entry->second.end;
    previous = &entry->first;
  }
  if (covered != data_bytes) {
    return c10::str(data_bytes - covered, " bytes follow the last tensor");
  }
  return "";
}

/// Finds the header in the file's bytes; empty text if all is well.
std::string find_header(std::string_view bytes, std::string_view& header) {
  if (bytes.size() < kSizeBytes) {
    return c10::str("it holds ", bytes.size(),
                    " bytes, fewer than the 8 that give the size of its header");
  }
  uint64_t size = 0;
  std::memcpy(&size, bytes.data(), kSizeBytes);
  if (size > kMaxHeaderBytes) {
    return c10::str("its header claims ", size, " bytes, more than the ", kMaxHeaderBytes,
                    " allowed");
  }
  if (size > bytes.size() - kSizeBytes) {
    return c10::str("its header claims ", size, " bytes, but only ", bytes.size() - kSizeBytes,
                    " follow: it is cut off");
  }
  header = bytes.substr(kSizeBytes, size);
  if (!header.starts_with('{')) return "its header does not start with '{'";
  // nlohmann-json takes a zero byte for the end of the text, and would ignore what follows.
  const size_t zero = header.find('\0');
  if (zero != std::string_view::npos) {
    return c10::str("its header is not JSON at byte ", zero + 1, " of it");
  }
  return "";
}

[[noreturn]] void refuse(const std::string& file, const std::string& reason) {
  TORCH_CHECK_VALUE(false, "'", file, "' is not a valid safetensors file: ", reason);
}

}  // namespace

std::string in_quotes(const std::string& name) {
  constexpr size_t kLongest = 100;
  if (name.size() <= kLongest) return c10::str("'", name, "'");
  size_t cut = kLongest;
  while (cut > 0 && (static_cast<unsigned char>(name[cut]) & 0xC0U) == 0x80U) --cut;  // whole UTF-8
  return c10::str("'", name.substr(0, cut), "…'");
}

Header parse_header(std::string_view bytes, const std::string& file) {
  std::string_view text;
  if (auto error = find_header(bytes, text); !error.empty()) refuse(file, error);
  HeaderReader reader;
  if (!nlohmann::json::sax_parse(text.begin(), text.end(), &reader)) refuse(file, reader.error());

  const uint64_t data_offset = kSizeBytes + text.size();
  const uint64_t data_bytes = bytes.size() - data_offset;
  for (auto& [name, info] : reader.infos()) {
    if (auto error = check_tensor(info, data_bytes); !error.empty()) {
      refuse(file, c10::str("tensor ", in_quotes(name), " ", error));
    }
  }
  if (auto error = check_cover(reader.infos(), data_bytes); !error.empty()) refuse(file, error);
  return {std::move(reader.infos()), std::move(reader.metadata()), data_offset};
}

}  // namespace torchlore::detail
