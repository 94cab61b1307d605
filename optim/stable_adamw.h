// stable_adamw.h: StableAdamW (paper Alg. 2) = AdamW + the update clipping of AdaFactor.
//
// Why: `second` is a long memory (β2 = 0.99 remembers 100 steps). When the learning signal changes, g²
// outgrows it, first/sqrt(second) gets too large, and the loss spikes a few steps later. rms =
// sqrt(mean(g²/second)) measures by how much: about 1 in calm times, 2.3 and more before a spike. So the rate
// of that one tensor, in that one step, becomes
//   η_t = α_t / max(1, rms/d),   d = 1
// Unlike global gradient clipping this needs no threshold that depends on the model, slows down no other
// tensor, and leaves the moments to learn from the unclipped gradient.
//
// Which rate decays the weights? The code of the paper's experiments takes α_t, its Alg. 2 takes η_t. α_t is
// the default; update.decay_clipped_rate = true is the text.
#pragma once

#include <utility>

#include "optim/adamw.h"

namespace switchback {

// These options with update clipping:  AdamW optimizer(arena, stable_adamw({.beta2 = 0.99}));
inline AdamWOptions stable_adamw(AdamWOptions options = {}) {
  options.update.clip_update = true;
  return options;
}

}  // namespace switchback
