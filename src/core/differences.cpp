#include "differences.hpp"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstring>
#include <sstream>

namespace torchlore::detail {
namespace {

constexpr size_t kMaxLines = 10;

template <typename... Parts>
std::string joined(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

}  // namespace

void Differences::append(const std::string& prefix, const Differences& other) {
  for (const auto& line : other.lines_) lines_.push_back(prefix + line);
}

std::string Differences::text() const {
  auto result =
      std::to_string(lines_.size()) + (lines_.size() == 1 ? " difference:" : " differences:");
  const auto shown = std::min(lines_.size(), kMaxLines);
  for (size_t i = 0; i < shown; ++i) result += "\n  " + lines_[i];
  if (shown < lines_.size()) {
    result += "\n  and " + std::to_string(lines_.size() - shown) + " more";
  }
  return result;
}

void compare_tensor(const std::string& key, const at::Tensor& here, const at::Tensor& saved,
                    Differences& differences) {
  if (here.sizes() != saved.sizes()) {
    differences.add(
        key, joined("shape ", saved.sizes(), " in the saved state, ", here.sizes(), " here"));
  }
  if (here.scalar_type() != saved.scalar_type()) {
    differences.add(key, joined("dtype ", saved.scalar_type(), " in the saved state, ",
                                here.scalar_type(), " here"));
  }
}

void compare_states(const StateDict& here, const StateDict& saved, Differences& differences) {
  for (const auto& [key, tensor] : here) {
    const auto found = saved.find(key);
    if (found == saved.end()) {
      differences.missing(key);
    } else {
      compare_tensor(key, tensor, found->second, differences);
    }
  }
  for (const auto& [key, tensor] : saved) {
    if (!here.contains(key)) differences.unexpected(key);
  }
}

void check_fits(const Differences& differences, const std::string& what) {
  TORCH_CHECK_VALUE(differences.empty(), "the saved state does not fit ", what,
                    ", and nothing was changed; ", differences.text());
}

at::Tensor text_tensor(const std::string& text) {
  auto bytes = at::empty({static_cast<int64_t>(text.size())}, at::kByte);
  if (!text.empty()) std::memcpy(bytes.mutable_data_ptr(), text.data(), text.size());
  return bytes;
}

std::string tensor_text(const at::Tensor& bytes) {
  const auto contiguous = bytes.cpu().contiguous();
  std::string text(static_cast<size_t>(contiguous.nbytes()), '\0');
  if (!text.empty()) std::memcpy(text.data(), contiguous.const_data_ptr(), text.size());
  return text;
}

}  // namespace torchlore::detail
