// vision_transformer.h: pixels (B, S, S, 3) u8 -> image features (B, E).
//
//   patches -> conv1 (a linear over each patch, no bias) -> class token + positions -> [patch dropout] ->
//   ln_pre -> blocks -> ln_post -> class token -> proj
#pragma once

#include "models/config.h"
#include "models/transformer.h"

namespace switchback {

// Which patches a training step looks at.
struct PatchDropout {
  uint64_t seed = 0;
  Tensor step;               // () i64 on the model's device
  int64_t first_sample = 0;  // number of the batch's first sample within the global batch
};

class VisionTransformer {
 public:
  VisionTransformer(ParameterArena& arena, const ClipConfig& config);

  // dropout: nullptr in evaluation. Left-out patches are never embedded.
  Variable operator()(const Tensor& pixels, const PixelNormalization& normalization,
                      const PatchDropout* dropout, const Recomputation& recompute) const;

 private:
  VisionConfig config_;
  Parameter class_embedding_, positional_embedding_, proj_, conv1_;
  LayerNorm ln_pre_;
  Transformer transformer_;
  LayerNorm ln_post_;
};

}  // namespace switchback
