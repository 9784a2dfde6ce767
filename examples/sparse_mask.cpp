// Who sees whom: masks put together from parts, what is left of the attention matrix, how long it takes
// to lay that out, and a picture. No matrix of all pairs is ever made.

#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <string>
#include <torchlore/attention/block_layout.hpp>
#include <torchlore/attention/mask_presets.hpp>
#include <utility>
#include <vector>

namespace tl = torchlore;
namespace mask = torchlore::mask;

double milliseconds_to_build(const tl::MaskSpec& spec, int64_t n) {
  const auto start = std::chrono::steady_clock::now();
  tl::BlockLayout::build(spec, n, n);
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
      .count();
}

int main(int argc, char** argv) {
  const bool quick = argc > 1 && std::string(argv[1]) == "--quick";
  const int64_t n = quick ? 2'048 : 65'536;
  const int64_t drawn = 1'024;

  const std::vector<std::pair<const char*, tl::MaskSpec>> masks = {
      {"causal", mask::causal()},
      {"window and sinks", mask::causal() & (mask::window(128) | mask::sinks(4))},
      {"log-sparse", mask::log_sparse()},
      {"dilated", mask::causal() & mask::dilated(8, 64)},
      {"packed documents", mask::causal() & mask::documents({300, 500, 224})},
      {"random blocks", mask::causal() & mask::random_blocks(3, /*seed=*/1)},
      {"streaming", mask::streaming(/*window=*/256)},
      {"BigBird", mask::big_bird()},
      {"for summarization", mask::for_summarization()},
      {"for code", mask::for_code()},
  };
  for (const auto& [name, spec] : masks) {
    const auto layout = tl::BlockLayout::build(spec, drawn, drawn);
    std::cout << name << ": " << spec << '\n' << layout.draw_text({.columns = 32});
    std::printf("%lld tokens: %.0f %% of the blocks, %.1f %% of the pairs\n",
                static_cast<long long>(drawn), 100 * layout.density(),
                100 * layout.visible_share());
    std::printf("%lld tokens: laid out in %.1f ms\n\n", static_cast<long long>(n),
                milliseconds_to_build(spec, n));
  }

  if (argc > 1 && !quick) {  // sparse_mask picture.svg
    std::ofstream(argv[1]) << tl::BlockLayout::build(masks.back().second, drawn, drawn).draw_svg();
  }
}
