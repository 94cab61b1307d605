// clip_cases.h: every op of op_list.h at the sizes it has in one training step of a CLIP.
//
//   vision tower: rows = B (N + 1), N patches; text tower: rows = B T; C width, H mlp width
// The cases are those of the tests (tests/kernels), larger.
#pragma once

#include "models/clip.h"
#include "tests/cuda/wide_cases.h"

namespace switchback {

// The optimizer's arena: the model's own tensors, each starting at a multiple of 128 elements.
inline Arena arena_of(const ClipConfig& config) {
  ParameterArena parameters(DType::bf16, cpu_device, 1);
  const Clip clip(parameters, config);  // adds them; nothing is allocated
  Arena arena;
  arena.padding = 0;
  for (const ParameterArena::Segment& s : parameters.segments()) {
    const int64_t alignment = ParameterArena::segment_alignment;
    arena.sizes.push_back((s.shape.size() + alignment - 1) / alignment * alignment);
  }
  return arena;
}

inline std::vector<std::function<OpCase()>> clip_cases(const ClipConfig& config, int64_t batch) {
  std::vector<std::function<OpCase()>> cases;  // made one at a time: a case may hold gigabytes
  const VisionConfig& v = config.vision;
  const TextConfig& t = config.text;
  const Gelu kind = config.quick_gelu ? Gelu::quick : Gelu::exact;
  struct Tower {
    int64_t rows, width, mlp, tokens, heads;
    bool causal;
  };
  const int64_t patches = v.patches();
  for (const Tower& tower :
       {Tower{batch * (patches + 1), v.width, v.mlp_width(), patches + 1, v.heads(), false},
        Tower{batch * t.context_length, t.width, t.mlp_width(), t.context_length, t.heads, true}}) {
    const int64_t m = tower.rows, c = tower.width, h = tower.mlp;
    for (const auto& [k, n] : std::vector<std::pair<int64_t, int64_t>>{{c, 3 * c}, {c, c}, {c, h}, {h, c}}) {
      cases.push_back([=] { return linear_forward_case(m, k, n, true); });
      cases.push_back([=] { return linear_backward_input_case(m, k, n); });
      cases.push_back([=] { return linear_backward_weight_case(m, k, n); });
    }
    cases.push_back([=] { return linear_gelu_forward_case(m, c, h, kind, true); });
    cases.push_back([=] { return linear_gelu_forward_case(m, c, h, kind, false); });
    cases.push_back([=] { return linear_gelu_backward_input_case(m, h, c, kind, false); });
    cases.push_back([=] { return linear_gelu_backward_input_case(m, h, c, kind, true); });
    cases.push_back([=] { return gelu_forward_case(m, h, kind); });
    cases.push_back([=] { return gelu_backward_case(m, h, kind); });
    cases.push_back([=] { return residual_layernorm_forward_case(m, c, false); });
    cases.push_back([=] { return residual_layernorm_backward_case(m, c, false, true); });
    cases.push_back([=] { return residual_layernorm_forward_case(m, c, true); });
    cases.push_back([=] { return residual_layernorm_backward_case(m, c, true, true); });
    cases.push_back([=] { return layernorm_forward_case(m, c); });
    cases.push_back([=] { return layernorm_backward_case(m, c); });
    cases.push_back([=] { return residual_forward_case(m, c, false); });
    cases.push_back([=] { return residual_backward_case(m, c); });
    const AttentionSizes attention{batch, tower.tokens, tower.heads, c / tower.heads, tower.causal};
    cases.push_back([=] { return attention_forward_case(attention); });
    cases.push_back([=] { return attention_backward_case(attention, false); });
    cases.push_back([=] { return pool_forward_case(batch, tower.tokens, c, tower.causal); });
    cases.push_back([=] { return pool_backward_case(batch, tower.tokens, c, tower.causal); });
    cases.push_back([=, e = config.embed_dim] { return matmul_case(batch, e, c, false, false); });
    cases.push_back([=, e = config.embed_dim] { return l2_normalize_forward_case(batch, e); });
    cases.push_back([=, e = config.embed_dim] { return l2_normalize_backward_case(batch, e); });
  }
  const int64_t p = v.patch_size, width = v.width;
  cases.push_back([=, s = v.image_size] { return extract_patches_case(batch, s, s, p, patches); });
  cases.push_back([=] { return linear_forward_case(batch * patches, 3 * p * p, width, false); });
  cases.push_back([=] { return vision_embed_forward_case(batch, patches, patches, width); });
  cases.push_back([=] { return vision_embed_backward_case(batch, patches, patches, width); });
  cases.push_back([=] { return text_embed_forward_case(batch, t.context_length, t.vocab_size, t.width); });
  cases.push_back([=] { return text_embed_backward_case(batch, t.context_length, t.vocab_size, t.width); });
  cases.push_back([=] { return find_largest_token_case(batch, t.context_length); });
  const LossSizes loss{batch, batch, 0, config.embed_dim};
  cases.push_back([=] { return contrastive_forward_case(loss); });
  cases.push_back([=] { return contrastive_backward_case(loss, false); });
  cases.push_back([=] { return siglip_forward_case(tile_of(loss)); });
  cases.push_back([=] { return siglip_backward_case(tile_of(loss)); });
  cases.push_back([=] { return gradient_statistics_case(arena_of(config)); });
  cases.push_back([=] { return adam_moments_case(arena_of(config), false); });
  cases.push_back([=] { return adam_update_case(arena_of(config)); });
  cases.push_back([=] { return adam_step_case(arena_of(config), false); });
  cases.push_back([=] { return fill_case(batch * patches * width); });
  cases.push_back([=] { return cast_case(batch * patches * width); });
  cases.push_back([=] { return accumulate_case(batch * patches * width); });
  cases.push_back([=] { return clamp_case(1); });
  cases.push_back([=] { return choose_patches_case(batch, patches / 2, patches); });
  return cases;
}

}  // namespace switchback
