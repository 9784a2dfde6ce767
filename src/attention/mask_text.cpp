#include <algorithm>
#include <sstream>

#include "mask_node.hpp"

namespace torchlore {
namespace {

const char* name_of(Align align) {
  return align == Align::bottom_right ? "Align::bottom_right" : "Align::top_left";
}

/// Arguments between parentheses, with commas where they belong.
class Call {
 public:
  Call(std::ostream& out, const char* name) : out_(out) { out_ << name << '('; }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  ~Call() { out_ << ')'; }

  template <typename T>
  Call& add(const T& argument) {
    out_ << (first_ ? "" : ", ") << argument;
    first_ = false;
    return *this;
  }
  Call& add(const mask::MaybeAlign& align) { return align ? add(name_of(*align)) : *this; }

 private:
  std::ostream& out_;
  bool first_ = true;
};

/// `{a, b, c}`; long lists are cut.
template <typename Items, typename Write>
std::string in_braces(const Items& items, const Write& write) {
  constexpr size_t kShown = 8;
  std::ostringstream text;
  text << '{';
  for (size_t i = 0; i < std::min(items.size(), kShown); ++i) {
    text << (i == 0 ? "" : ", ");
    write(text, items[i]);
  }
  if (items.size() > kShown) text << ", … " << items.size() << " in all";
  text << '}';
  return text.str();
}

std::string list_of(const std::vector<int64_t>& items) {
  return in_braces(items, [](std::ostream& text, int64_t item) { text << item; });
}

std::string documents_of(const std::vector<int64_t>& bounds) {
  std::vector<int64_t> lengths;
  for (size_t i = 1; i < bounds.size(); ++i) lengths.push_back(bounds[i] - bounds[i - 1]);
  return list_of(lengths);
}

template <typename Random>
std::string random_options(const Random& of, int64_t block) {
  std::vector<std::string> set;
  if (!of.keep_diagonal) set.emplace_back(".keep_diagonal = false");
  if (of.align) set.push_back(std::string(".align = ") + name_of(*of.align));
  if (block != mask::RandomOptions().block) set.push_back(".block = " + std::to_string(block));
  for (const auto& always : of.always) set.push_back(".always = " + to_string(always));
  if (set.empty()) return {};
  return in_braces(set, [](std::ostream& text, const std::string& item) { text << item; });
}

void add_options(Call& call, const std::string& options) {
  if (!options.empty()) call.add(options);
}

void write(std::ostream& out, const nodes::Everything&) { out << "all()"; }
void write(std::ostream& out, const nodes::Causal& of) { Call(out, "causal").add(of.align); }
void write(std::ostream& out, const nodes::Window& of) {
  Call(out, "window").add(of.size).add(of.align);
}
void write(std::ostream& out, const nodes::Sinks& of) { Call(out, "sinks").add(of.count); }
void write(std::ostream& out, const nodes::Padding& of) {
  Call(out, "padding").add(list_of(of.lengths));
}
void write(std::ostream& out, const nodes::GlobalTokens& of) {
  Call(out, "global_tokens").add(list_of(of.positions)).add(of.align);
}
void write(std::ostream& out, const nodes::Dilated& of) {
  Call(out, "dilated").add(of.size).add(of.dilation).add(of.align);
}
void write(std::ostream& out, const nodes::Strided& of) {
  Call call(out, "strided");
  call.add(of.stride);
  if (of.first != 0) call.add(of.first);
}
void write(std::ostream& out, const nodes::StridedRuns& of) {
  Call(out, "strided_runs").add(of.stride).add(of.first).add(of.run);
}
void write(std::ostream& out, const nodes::LogSparse& of) { Call(out, "log_sparse").add(of.align); }
void write(std::ostream& out, const nodes::Documents& of) {
  Call call(out, of.bounds.size() == 1 ? "documents" : "documents_per_batch");
  if (of.bounds.size() == 1) {
    call.add(documents_of(of.bounds.front()));
  } else {
    call.add(in_braces(of.bounds, [](std::ostream& text, const std::vector<int64_t>& bounds) {
      text << documents_of(bounds);
    }));
  }
  call.add(of.align);
}
void write(std::ostream& out, const nodes::RandomTopK& of) {
  Call call(out, "random_top_k");
  call.add(of.k).add(of.seed);
  add_options(call, random_options(of, mask::RandomOptions().block));
}
void write(std::ostream& out, const nodes::RandomBlocks& of) {
  Call call(out, of.count > 0 ? "random_blocks" : "random_sparsity");
  if (of.count > 0) {
    call.add(of.count);
  } else {
    call.add(of.sparsity);
  }
  call.add(of.seed);
  add_options(call, random_options(of, of.block));
}
void write(std::ostream& out, const nodes::PerHead& of) {
  Call(out, "per_head").add(in_braces(of.heads, [](std::ostream& text, const MaskSpec& head) {
    text << to_string(head);
  }));
}
void write(std::ostream& out, const nodes::Custom& of) { out << of.options.name << "()"; }
void write(std::ostream& out, const nodes::Dense& of) {
  const auto shape = of.visible.sizes();
  out << "dense(" << shape[2] << " x " << shape[3] << " tensor)";
}

/// Parts of a conjunction or disjunction; a part that binds less tightly goes into parentheses.
template <typename Looser>
void write_parts(std::ostream& out, const std::vector<MaskSpec>& parts, const char* between) {
  for (size_t i = 0; i < parts.size(); ++i) {
    const auto& value = parts[i].node().value;
    // Compilers warn of !a & b without parentheses.
    const bool looser =
        std::holds_alternative<Looser>(value) || std::holds_alternative<nodes::Not>(value);
    out << (i == 0 ? "" : between) << (looser ? "(" : "") << to_string(parts[i])
        << (looser ? ")" : "");
  }
}
void write(std::ostream& out, const nodes::And& of) {
  write_parts<nodes::Or>(out, of.parts, " & ");
}
void write(std::ostream& out, const nodes::Or& of) { write_parts<nodes::Or>(out, of.parts, " | "); }
void write(std::ostream& out, const nodes::Not& of) {
  const auto& value = of.part.node().value;
  const bool joined =
      std::holds_alternative<nodes::And>(value) || std::holds_alternative<nodes::Or>(value);
  out << (joined ? "!(" : "!") << to_string(of.part) << (joined ? ")" : "");
}

}  // namespace

std::string to_string(const MaskSpec& spec) {
  std::ostringstream text;
  std::visit([&](const auto& of) { write(text, of); }, spec.node().value);
  return text.str();
}

std::ostream& operator<<(std::ostream& out, const MaskSpec& spec) { return out << to_string(spec); }

}  // namespace torchlore
