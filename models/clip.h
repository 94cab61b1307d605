// clip.h: two towers and a temperature.
//
//   images (B, S, S, 3) u8 -> encode_image -> (B, E) f32, L2-normalised
//   tokens (B, T) i32      -> encode_text  -> (B, E) f32, L2-normalised
//   loss(images, tokens)   -> softmax contrastive loss, or SigLIP's where the config has a logit bias
//
// Parameters are added to the arena in open_clip's named_parameters() order and under its state-dict keys.
#pragma once

#include "models/text_transformer.h"
#include "models/vision_transformer.h"

namespace switchback {

class Clip {
 public:
  Clip(ParameterArena& arena, const ClipConfig& config);

  struct Options {
    PixelNormalization normalization;
    Recomputation recompute;                 // what the backward pass makes again instead of keeping it
    const PatchDropout* dropout = nullptr;   // training with patch dropout
  };

  Variable encode_image(const Tensor& images, const Options& options) const;
  Variable encode_text(const Tensor& tokens, const Options& options) const;
  // tokens (B, T) i32 in host memory -> the columns that encode_text must see (text_length.h), or all of them
  Tensor needed_columns(const Tensor& tokens) const;
  // The loss of features that encode_* gave; () f32
  Variable loss(const Variable& image_features, const Variable& text_features) const;
  // Of this rank's features over the batch of all ranks: this rank's share (autograd/ops.h)
  Variable loss(const Variable& image_features, const Variable& text_features, Communicator& ranks) const;

  const ClipConfig& config() const { return config_; }
  const Parameter& logit_scale() const { return logit_scale_; }
  const Parameter& logit_bias() const { return logit_bias_; }

  // After each optimizer step: logit_scale is kept within [0, ln 100].
  void clamp_logit_scale() const;

 private:
  const ParameterArena* arena_;
  ClipConfig config_;
  TextTransformer::Head text_head_;
  Parameter logit_scale_, logit_bias_;
  VisionTransformer visual_;
  TextTransformer text_;
};

}  // namespace switchback
