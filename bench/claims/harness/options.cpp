#include "options.hpp"

#include <c10/util/Exception.h>

#include <algorithm>
#include <charconv>

namespace torchlore::claims {

const char* const kUsage =
    "torchlore_claims: measures what torchlore promises; prints one JSON line per bar.\n"
    "  --list          the claims\n"
    "  --all           measure all of them\n"
    "  --group MODULE  those of a module (may be repeated)\n"
    "  --run NAME      one of them (may be repeated)\n"
    "  --short         leave out what takes more than two minutes\n"
    "  --quick         small sizes and few repeats: does it run at all?\n"
    "  --threads N     threads on both sides (default: the number of cores)\n"
    "  --json FILE     also append the lines to a file\n"
    "  --render FILE   print docs/claims.md from such a file\n"
    "A bar that is missed is a result, not an error: the exit code is 0.\n";

namespace {

int64_t parse_threads(const std::string& text) {
  int64_t threads = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), threads);
  TORCH_CHECK_VALUE(error == std::errc() && end == text.data() + text.size() && threads >= 1,
                    "--threads takes a number, 1 or more, but got '", text, "'");
  return threads;
}

template <typename Field>
std::string known(const std::vector<Claim>& claims, Field field) {
  std::string text;
  for (const auto& claim : claims) {
    const std::string& word = claim.*field;
    if (text.find(" " + word + ",") == std::string::npos) text += " " + word + ",";
  }
  return text.substr(0, text.size() - 1);
}

bool has(const std::vector<std::string>& words, const std::string& word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

template <typename Field>
void check_known(const char* what, const std::vector<std::string>& asked,
                 const std::vector<Claim>& claims, Field field) {
  for (const auto& word : asked) {
    const bool found = std::any_of(claims.begin(), claims.end(),
                                   [&](const Claim& claim) { return claim.*field == word; });
    TORCH_CHECK_VALUE(found, "there is no ", what, " '", word,
                      "'; there are:", known(claims, field));
  }
}

}  // namespace

Options parse_options(const std::vector<std::string>& arguments) {
  Options options;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& name = arguments[i];
    const auto value = [&]() -> const std::string& {
      TORCH_CHECK_VALUE(i + 1 < arguments.size(), name, " needs a value");
      return arguments[++i];
    };
    if (name == "--list") {
      options.list = true;
    } else if (name == "--all") {
      options.all = true;
    } else if (name == "--quick") {
      options.quick = true;
    } else if (name == "--short") {
      options.only_short = true;
    } else if (name == "--group") {
      options.groups.push_back(value());
    } else if (name == "--run") {
      options.names.push_back(value());
    } else if (name == "--threads") {
      options.threads = parse_threads(value());
    } else if (name == "--json") {
      options.json = value();
    } else if (name == "--render") {
      options.render = value();
    } else {
      TORCH_CHECK_VALUE(false, "unknown argument '", name, "'\n", kUsage);
    }
  }
  TORCH_CHECK_VALUE(!options.quick || options.json.empty(),
                    "--quick measures nothing that is worth keeping: leave out --json");
  return options;
}

std::vector<Claim> chosen_claims(const Options& options, const std::vector<Claim>& claims) {
  check_known("claim", options.names, claims, &Claim::name);
  check_known("group", options.groups, claims, &Claim::group);
  std::vector<Claim> chosen;
  for (const auto& claim : claims) {
    const bool by_kind = (options.all || has(options.groups, claim.group)) && !claim.only_by_name &&
                         !(options.only_short && claim.minutes > 2);
    if (by_kind || has(options.names, claim.name)) chosen.push_back(claim);
  }
  return chosen;
}

}  // namespace torchlore::claims
