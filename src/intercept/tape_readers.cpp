#include "tape_readers.hpp"

#include <algorithm>

namespace torchlore::detail {
namespace {

constexpr std::string_view kList = "…";

int64_t to_int(const c10::SymInt& value) { return value.guard_int(__FILE__, __LINE__); }

}  // namespace

const TapeReader& tape_reader(const torch::autograd::Node& node) {
  static const TapeReaders readers = [] {
    TapeReaders all;
    add_layer_readers(all);
    add_other_readers(all);
    return all;
  }();
  static const TapeReader nothing_known;
  const auto found = readers.find(typeid(node));
  return found != readers.end() ? found->second : nothing_known;
}

std::string_view tape_input_name(const TapeReader& reader, size_t position, size_t count) {
  const auto& names = reader.inputs;
  const auto list = std::find_if(names.begin(), names.end(),
                                 [](std::string_view name) { return name.ends_with(kList); });
  if (list == names.end()) return count == names.size() ? names[position] : std::string_view();
  if (count + 1 < names.size()) return {};
  const auto first = static_cast<size_t>(list - names.begin());
  const size_t length = count + 1 - names.size();
  if (position < first) return names[position];
  if (position >= first + length) return names[position + 1 - length];
  return list->substr(0, list->size() - kList.size());
}

void TapeRecorder::operator()(std::string_view name, const torch::autograd::SavedVariable& saved) {
  const auto& results = reader_.results;
  const auto renamed = std::find_if(results.begin(), results.end(),
                                    [&](const auto& pair) { return pair.first == name; });
  record(std::string(renamed != results.end() ? renamed->second : name), saved);
}

void TapeRecorder::operator()(std::string_view name,
                              const std::vector<torch::autograd::SavedVariable>& saved) {
  for (size_t i = 0; i < saved.size(); ++i) {
    record(std::string(name) + '[' + std::to_string(i) + ']', saved[i]);
  }
}

void TapeRecorder::record(std::string name, const torch::autograd::SavedVariable& saved) {
  if (!keep_saved_) return;
  const at::Tensor tensor = saved.unpack(from_.getptr());
  if (!tensor.defined()) return;
  const int64_t version = tensor.is_inference() ? 0 : tensor._version();
  to_.saved.push_back({std::move(name), tensor.detach(), version});
}

void TapeRecorder::operator()(std::string_view name, const std::vector<c10::SymInt>& value) {
  std::vector<int64_t> ints(value.size());
  std::transform(value.begin(), value.end(), ints.begin(), to_int);
  (*this)(name, ints);
}

void TapeRecorder::operator()(std::string_view name, const c10::SymInt& value) {
  (*this)(name, to_int(value));
}

void TapeRecorder::operator()(std::string_view name, const at::Scalar& value) {
  if (value.isBoolean()) {
    (*this)(name, value.toBool());
  } else if (value.isIntegral(/*includeBool=*/false)) {
    (*this)(name, value.toLong());
  } else if (value.isFloatingPoint()) {
    (*this)(name, value.toDouble());
  }  // complex numbers are left out: no attribute type holds them
}

void TapeRecorder::operator()(std::string_view name, const at::TensorOptions& value) {
  (*this)(name, c10::typeMetaToScalarType(value.dtype()));
}

void TapeRecorder::check_not_released(bool released) const {
  TORCH_CHECK(!released || !keep_saved_, torch::autograd::ERR_BACKWARD_TWICE);
}

}  // namespace torchlore::detail
