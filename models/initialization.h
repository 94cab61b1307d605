// initialization.h: the first values of a CLIP, tower by tower, as open_clip draws them (distributions, not
// bits).
//
//   vision: PyTorch's defaults. qkv Xavier-uniform over (3C, C), linears U(±1/√fan_in) for weight and bias.
//   text:   GPT-2's: N(0, C^-1/2) for qkv, N(0, C^-1/2 (2L)^-1/2) for what writes to the residual stream.
#pragma once

#include <cmath>

#include "models/config.h"
#include "nn/block.h"

namespace switchback {

inline Init default_linear(int64_t fan_in) {
  return Init::uniform_within(1 / std::sqrt(static_cast<double>(fan_in)));
}

inline BlockOptions vision_block(const ClipConfig& c) {
  const VisionConfig& v = c.vision;
  return {.width = v.width,
          .heads = v.heads(),
          .mlp_width = v.mlp_width(),
          .causal = false,
          .gelu = c.quick_gelu ? Gelu::quick : Gelu::exact,
          .layer_scale = v.layer_scale,
          .linear = &linear_recipe(v.linear),
          .whole_last = c.whole_last_block,
          .qkv = Init::uniform_within(std::sqrt(6.0 / static_cast<double>(4 * v.width))),
          .out = default_linear(v.width),
          .fc = default_linear(v.width),
          .fc_bias = default_linear(v.width),
          .proj = default_linear(v.mlp_width()),
          .proj_bias = default_linear(v.mlp_width())};
}

inline BlockOptions text_block(const ClipConfig& c) {
  const TextConfig& t = c.text;
  const double width_std = 1 / std::sqrt(static_cast<double>(t.width));
  const double residual_std = width_std / std::sqrt(static_cast<double>(2 * t.layers));
  return {.width = t.width,
          .heads = t.heads,
          .mlp_width = t.mlp_width(),
          .causal = true,
          .gelu = c.quick_gelu ? Gelu::quick : Gelu::exact,
          .layer_scale = t.layer_scale,
          .linear = &linear_recipe(t.linear),
          .whole_last = c.whole_last_block,
          .qkv = Init::normal_with(width_std),
          .out = Init::normal_with(residual_std),
          .fc = Init::normal_with(1 / std::sqrt(static_cast<double>(2 * t.width))),
          .fc_bias = default_linear(t.width),
          .proj = Init::normal_with(residual_std),
          .proj_bias = default_linear(t.mlp_width())};
}

}  // namespace switchback
