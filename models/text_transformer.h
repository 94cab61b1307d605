// text_transformer.h: tokens (B, T) i32 -> text features (B, E).
//
//   token embedding + positions -> causal blocks -> ln_final -> the end-of-text token -> text_projection
//
// open_clip keeps the text tower's parameters at the top level of the model and some of them before the
// vision tower: the parameters are handed in by Clip, which fixes that order.
#pragma once

#include "models/config.h"
#include "models/transformer.h"

namespace switchback {

class TextTransformer {
 public:
  // In open_clip's order the first two come before the vision tower's parameters, the rest after them.
  struct Head {
    Parameter positional_embedding;  // (T, C)
    Parameter text_projection;       // (C, E)
  };
  static Head add_head(ParameterArena& arena, const ClipConfig& config);
  TextTransformer(ParameterArena& arena, const ClipConfig& config, Head head);

  Variable operator()(const Tensor& tokens, const Recomputation& recompute) const;

 private:
  Head head_;
  Transformer transformer_;
  Parameter token_embedding_;
  LayerNorm ln_final_;
};

}  // namespace switchback
