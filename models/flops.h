// flops.h: floating-point operations of a CLIP per image-text pair; one multiply-add is two.
//
//   block  = 2 T (4 C² + 2 C H) + 4 T² C           (T tokens, C width, H mlp width; causal attention not
//          halved)
//   tower  = layers x block + the patch embedding 2 N 3p² C (vision) + the projection 2 C E
// Training is counted as three forward passes. These are the nominal FLOPs of open_clip's model profile: the
// full context, all patches. What a step really computes may be less (patch dropout) or more (recomputation).
#pragma once

#include "models/config.h"

namespace switchback {

struct ClipFlops {
  double image = 0, text = 0;                       // forward
  double forward() const { return image + text; }   // per pair
  double training() const { return 3 * forward(); }
};

ClipFlops nominal_flops(const ClipConfig& config);
int64_t parameter_count(const ClipConfig& config);  // by arithmetic, without building the model

}  // namespace switchback
