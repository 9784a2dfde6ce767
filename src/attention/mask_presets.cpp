#include "torchlore/attention/mask_presets.hpp"

#include <numeric>

#include "torchlore/core/error.hpp"

namespace torchlore::mask {

MaskSpec big_bird(const BigBirdOptions& options) {
  check_count("block", options.block);
  check_count("window_blocks", options.window_blocks);
  TORCH_CHECK_VALUE(options.global_blocks >= 0, "global_blocks must be 0 or more, but is ",
                    options.global_blocks);
  check_count("random_blocks", options.random_blocks);
  std::vector<int64_t> global(static_cast<size_t>(options.global_blocks * options.block));
  std::iota(global.begin(), global.end(), int64_t{0});
  const int64_t side = options.window_blocks * options.block / 2;
  return window(side + 1, options.align) | global_tokens(std::move(global), options.align) |
         random_blocks(options.random_blocks, options.seed,
                       {.align = options.align, .block = options.block});
}

MaskSpec long_document(int64_t window_size, std::vector<int64_t> global, MaybeAlign align) {
  TORCH_CHECK_VALUE(window_size >= 0, "window must be 0 or more, but is ", window_size);
  return window(window_size / 2 + 1, align) | global_tokens(std::move(global), align);
}

MaskSpec streaming(int64_t window_size, int64_t sink_count, MaybeAlign align) {
  return causal(align) & (window(window_size, align) | sinks(sink_count));
}

MaskSpec for_summarization(const SummarizationOptions& options) {
  const RandomOptions random = {
      .align = options.align,
      .always = window(options.window, options.align) | sinks(options.sinks)};
  return causal(options.align) & random_sparsity(options.sparsity, options.seed, random);
}

MaskSpec for_code(const CodeOptions& options) {
  check_count("summary", options.summary);
  TORCH_CHECK_VALUE(options.summary <= options.stride, "summary must be at most stride, which is ",
                    options.stride, ", but is ", options.summary);
  const auto summaries =
      strided_runs(options.stride, options.stride - options.summary, options.summary);
  return causal(options.align) & (window(options.window, options.align) | summaries);
}

}  // namespace torchlore::mask
