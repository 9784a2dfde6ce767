#include "torchlore/gradient/clip.hpp"

#include "torchlore/core/error.hpp"

namespace torchlore {

Clip::Clip(Kind kind, double threshold, double norm_type)
    : kind_(kind), threshold_(threshold), norm_type_(norm_type) {
  if (kind == Kind::value) check_positive("clip::value(clip_value)", threshold);
  if (kind != Kind::norm) return;
  TORCH_CHECK_VALUE(threshold > 0, "clip::norm(max_norm) must be above 0, but is ", threshold,
                    "; use infinity to measure without clipping");
  TORCH_CHECK_VALUE(norm_type > 0, "clip::norm(…, norm_type) must be above 0, but is ", norm_type);
}

}  // namespace torchlore
