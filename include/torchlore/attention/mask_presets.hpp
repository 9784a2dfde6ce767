#pragma once

#include <cstdint>
#include <vector>

#include "torchlore/attention/mask.hpp"

/// Masks that others have trained or served models with, made of the parts of mask.hpp.
namespace torchlore::mask {

/// Options of `big_bird`.
struct BigBirdOptions {
  int64_t block = 64;               ///< tokens of a block
  int64_t window_blocks = 3;        ///< of the window around each token, both sides together
  int64_t global_blocks = 2;        ///< of global tokens, at the beginning
  int64_t random_blocks = 3;        ///< for each block of queries, of all that may be seen
  uint64_t seed = 0;                ///< of the random ones
  MaybeAlign align = std::nullopt;  ///< see `Align`
};

/// A window, global tokens and random blocks, in both directions; join it with `causal()` for one.
/// Where the paper's window moves by whole blocks this one moves by tokens, with as many keys.
/// @throws c10::ValueError for a number below 1, or of global blocks below 0.
/// Source: Zaheer et al. (2020), arXiv:2007.14062, whose long sequences take these defaults.
MaskSpec big_bird(const BigBirdOptions& options = {});

/// A window of `window` tokens around each, half on either side, and global tokens, in both
/// directions: for encoders of long documents.
/// @param window of keys, besides the token itself; 0 or more.
/// @param global positions of the global tokens.
/// @param align  see `Align`.
/// Source: Beltagy et al. (2020), arXiv:2004.05150.
MaskSpec long_document(int64_t window = 512, std::vector<int64_t> global = {0},
                       MaybeAlign align = std::nullopt);

/// The last `window` keys and the first `sinks` ones: for generation without an end.
/// @param window 1 or more.
/// @param sinks  0 or more.
/// @param align  see `Align`.
/// Source: Xiao et al. (2023), arXiv:2309.17453.
MaskSpec streaming(int64_t window = 1020, int64_t sinks = 4, MaybeAlign align = std::nullopt);

/// Options of `for_summarization`.
struct SummarizationOptions {
  double sparsity = 0.6;            ///< the share of the visible blocks that is left out
  int64_t window = 128;             ///< keys that are always among the others
  int64_t sinks = 4;                ///< so are the first ones
  uint64_t seed = 0;                ///< of the random ones
  MaybeAlign align = std::nullopt;  ///< see `Align`
};

/// Causal, with a share of the blocks left out at random, but neither the nearest keys nor the first
/// ones: what a text is summed up from lies all over it, and each head looks elsewhere.
/// @throws c10::ValueError if sparsity is not in [0, 1), window < 1 or sinks < 0.
MaskSpec for_summarization(const SummarizationOptions& options = {});

/// Options of `for_code`.
struct CodeOptions {
  int64_t window = 512;  ///< the nearest keys
  int64_t stride = 512;  ///< each stretch of this length shows its last `summary` keys to all
  int64_t summary = 64;  ///< so many; at most `stride`
  MaybeAlign align = std::nullopt;  ///< see `Align`
};

/// Causal and block-sparse: the nearest keys, and the last few of every stretch before them; code
/// looks at its surroundings, and from far at what closes each part.
/// @throws c10::ValueError for a number below 1, or a summary longer than the stride.
/// Source: the "fixed" pattern of Child et al. (2019), arXiv:1904.10509.
MaskSpec for_code(const CodeOptions& options = {});

}  // namespace torchlore::mask
