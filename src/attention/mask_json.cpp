#include "mask_json.hpp"

#include <nlohmann/json.hpp>

#include "mask_node.hpp"

namespace torchlore::detail {
namespace {

using nlohmann::json;

/// Deeper trees are taken for an attack on the stack.
constexpr int kMaxDepth = 200;

class Writer {
 public:
  explicit Writer(StateDict& tensors) : tensors_(tensors) {}

  json write(const MaskSpec& spec) {
    json out = std::visit([&](const auto& of) { return one(of); }, spec.node().value);
    std::visit(
        [&](const auto& of) {
          if constexpr (requires { of.align; }) {
            if (of.align) out["bottom_right"] = *of.align == Align::bottom_right;
          }
        },
        spec.node().value);
    return out;
  }

 private:
  json list(const std::vector<MaskSpec>& specs) {
    json out = json::array();
    for (const auto& spec : specs) out.push_back(write(spec));
    return out;
  }

  json one(const nodes::Everything&) { return {{"kind", "all"}}; }
  json one(const nodes::Causal&) { return {{"kind", "causal"}}; }
  json one(const nodes::Window& of) { return {{"kind", "window"}, {"size", of.size}}; }
  json one(const nodes::Sinks& of) { return {{"kind", "sinks"}, {"count", of.count}}; }
  json one(const nodes::Padding& of) { return {{"kind", "padding"}, {"lengths", of.lengths}}; }
  json one(const nodes::GlobalTokens& of) {
    return {{"kind", "global_tokens"}, {"positions", of.positions}};
  }
  json one(const nodes::Dilated& of) {
    return {{"kind", "dilated"}, {"size", of.size}, {"dilation", of.dilation}};
  }
  json one(const nodes::Strided& of) {
    return {{"kind", "strided"}, {"stride", of.stride}, {"first", of.first}};
  }
  json one(const nodes::StridedRuns& of) {
    return {{"kind", "strided_runs"}, {"stride", of.stride}, {"first", of.first}, {"run", of.run}};
  }
  json one(const nodes::LogSparse&) { return {{"kind", "log_sparse"}}; }
  json one(const nodes::Documents& of) {
    json lengths = json::array();
    for (const auto& bounds : of.bounds) {
      json entry = json::array();
      for (size_t i = 1; i < bounds.size(); ++i) entry.push_back(bounds[i] - bounds[i - 1]);
      lengths.push_back(std::move(entry));
    }
    return {{"kind", "documents"}, {"lengths", std::move(lengths)}};
  }
  json one(const nodes::RandomTopK& of) {
    return {{"kind", "random_top_k"},
            {"k", of.k},
            {"seed", of.seed},
            {"keep_diagonal", of.keep_diagonal},
            {"parts", list(of.always)}};
  }
  json one(const nodes::RandomBlocks& of) {
    return {{"kind", "random_blocks"}, {"count", of.count}, {"sparsity", of.sparsity},
            {"seed", of.seed},         {"block", of.block}, {"keep_diagonal", of.keep_diagonal},
            {"parts", list(of.always)}};
  }
  json one(const nodes::PerHead& of) { return {{"kind", "per_head"}, {"parts", list(of.heads)}}; }
  json one(const nodes::Custom&) { TORCH_INTERNAL_ASSERT(false, "a predicate cannot be written"); }
  json one(const nodes::Dense& of) {
    const auto name = "mask/" + std::to_string(written_++);
    tensors_[name] = of.visible;
    return {{"kind", "dense"}, {"tensor", name}};
  }
  json one(const nodes::And& of) { return {{"kind", "and"}, {"parts", list(of.parts)}}; }
  json one(const nodes::Or& of) { return {{"kind", "or"}, {"parts", list(of.parts)}}; }
  json one(const nodes::Not& of) { return {{"kind", "not"}, {"parts", list({of.part})}}; }

  StateDict& tensors_;
  int written_ = 0;
};

class Reader {
 public:
  explicit Reader(const StateDict& tensors) : tensors_(tensors) {}

  /// All arguments pass through the makers, which check them.
  MaskSpec read(const json& in, int depth) const {
    TORCH_CHECK_VALUE(depth < kMaxDepth, "its parts are nested more than ", kMaxDepth, " deep");
    const auto kind = in.at("kind").get<std::string>();
    const auto number = [&](const char* name) { return in.at(name).get<int64_t>(); };
    const auto align = align_of(in);
    if (kind == "all") return mask::all();
    if (kind == "causal") return mask::causal(align);
    if (kind == "window") return mask::window(number("size"), align);
    if (kind == "sinks") return mask::sinks(number("count"));
    if (kind == "padding") return mask::padding(in.at("lengths"));
    if (kind == "global_tokens") return mask::global_tokens(in.at("positions"), align);
    if (kind == "dilated") return mask::dilated(number("size"), number("dilation"), align);
    if (kind == "strided") return mask::strided(number("stride"), number("first"));
    if (kind == "strided_runs") {
      return mask::strided_runs(number("stride"), number("first"), number("run"));
    }
    if (kind == "log_sparse") return mask::log_sparse(align);
    if (kind == "documents") {
      return mask::documents_per_batch(in.at("lengths").get<std::vector<std::vector<int64_t>>>(),
                                       align);
    }
    if (kind == "dense") return dense(in.at("tensor"));
    return read_composite(kind, in, depth);
  }

 private:
  static mask::MaybeAlign align_of(const json& in) {
    if (!in.contains("bottom_right")) return std::nullopt;
    return in.at("bottom_right").get<bool>() ? Align::bottom_right : Align::top_left;
  }

  MaskSpec dense(const std::string& name) const {
    const auto found = tensors_.find(name);
    TORCH_CHECK_VALUE(found != tensors_.end(), "its tensor '", name, "' is missing");
    return mask::dense(found->second);
  }

  MaskSpec read_composite(const std::string& kind, const json& in, int depth) const {
    std::vector<MaskSpec> parts;
    for (const auto& part : in.at("parts")) parts.push_back(read(part, depth + 1));
    if (kind == "random_top_k" || kind == "random_blocks") return random(kind, in, parts);
    TORCH_CHECK_VALUE(!parts.empty(), "it has a ", kind, " without parts");
    if (kind == "per_head") return mask::per_head(std::move(parts));
    if (kind == "not") return !parts.front();
    TORCH_CHECK_VALUE(kind == "and" || kind == "or", "it has a part of kind '", kind,
                      "', which this version does not know");
    MaskSpec joined = parts.front();
    for (size_t i = 1; i < parts.size(); ++i) {
      joined = kind == "and" ? joined & parts[i] : joined | parts[i];
    }
    return joined;
  }

  static MaskSpec random(const std::string& kind, const json& in,
                         const std::vector<MaskSpec>& always) {
    mask::RandomOptions options = {.keep_diagonal = in.at("keep_diagonal"), .align = align_of(in)};
    if (!always.empty()) options.always = always.front();
    const auto seed = in.at("seed").get<uint64_t>();
    if (kind == "random_top_k") return mask::random_top_k(in.at("k"), seed, options);
    options.block = in.at("block");
    const auto count = in.at("count").get<int64_t>();
    if (count == 0) return mask::random_sparsity(in.at("sparsity"), seed, options);
    return mask::random_blocks(count, seed, options);
  }

  const StateDict& tensors_;
};

}  // namespace

std::string mask_to_json(const MaskSpec& spec, StateDict& tensors) {
  return Writer(tensors).write(spec).dump();
}

MaskSpec mask_from_json(const std::string& text, const StateDict& tensors) {
  try {
    return Reader(tensors).read(json::parse(text), 0);
  } catch (const json::exception& error) {
    TORCH_CHECK_VALUE(false, "its mask cannot be read: ", error.what());
  }
}

}  // namespace torchlore::detail
