// op_cases.h: the cases of every op: odd sizes for correctness and parity, a small CLIP's sizes for speed.
#pragma once

#include "tests/kernels/cases_adam.h"
#include "tests/kernels/cases_attention.h"
#include "tests/kernels/cases_embedding.h"
#include "tests/kernels/cases_linear.h"
#include "tests/kernels/cases_loss.h"
#include "tests/kernels/cases_rows.h"

namespace switchback {

inline std::vector<OpCase> op_cases() {
  std::vector<OpCase> cases;
  // Row counts 1, 15, 129 with widths that no vector length divides.
  for (const auto& [rows, cols] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 7}, {15, 33}, {129, 77}, {129, 1}, {64, 64}}) {
    for (Gelu kind : {Gelu::exact, Gelu::quick}) {
      cases.push_back(gelu_forward_case(rows, cols, kind));
      cases.push_back(gelu_backward_case(rows, cols, kind));
    }
    for (bool scaled : {false, true}) cases.push_back(residual_forward_case(rows, cols, scaled));
    cases.push_back(residual_backward_case(rows, cols));
    if (cols > 1) cases.push_back(layernorm_forward_case(rows, cols));
    if (cols > 1) cases.push_back(layernorm_backward_case(rows, cols));
    if (cols > 1)
      for (bool scaled : {false, true}) {
        cases.push_back(residual_layernorm_forward_case(rows, cols, scaled));
        for (bool with_dsum : {false, true})
          cases.push_back(residual_layernorm_backward_case(rows, cols, scaled, with_dsum));
      }
    if (cols > 1) cases.push_back(l2_normalize_forward_case(rows, cols));
    cases.push_back(l2_normalize_backward_case(rows, cols));
    cases.push_back(accumulate_case(rows * cols));
    cases.push_back(clamp_case(rows * cols));
  }
  for (const Shape& s :
       {Shape{1, 1, 1}, Shape{15, 7, 33}, Shape{129, 50, 77}, Shape{5, 300, 4}, Shape{77, 129, 300}})
    for (bool ta : {false, true})
      for (bool tb : {false, true}) cases.push_back(matmul_case(s[0], s[1], s[2], ta, tb));
  for (const Shape& s :
       {Shape{1, 7, 5}, Shape{15, 33, 20}, Shape{129, 80, 77}, Shape{300, 96, 130}, Shape{2500, 24, 40}}) {
    for (bool with_bias : {false, true}) cases.push_back(linear_forward_case(s[0], s[1], s[2], with_bias));
    cases.push_back(linear_backward_input_case(s[0], s[1], s[2]));
    cases.push_back(linear_backward_weight_case(s[0], s[1], s[2]));
    for (bool extra : {false, true}) {
      const Gelu kind = s[0] % 2 ? Gelu::exact : Gelu::quick;
      cases.push_back(linear_gelu_forward_case(s[0], s[1], s[2], kind, extra, !extra || s[0] > 1));
      cases.push_back(linear_gelu_backward_input_case(s[0], s[1], s[2], kind, extra));
    }
  }
  for (const auto& [tokens, head_size] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 4}, {5, 20}, {50, 64}, {77, 80}, {17, 32}})
    for (bool causal : {false, true}) {
      cases.push_back(attention_forward_case({2, tokens, 3, head_size, causal}));
      cases.push_back(attention_backward_case({2, tokens, 3, head_size, causal}));
    }
  cases.push_back(extract_patches_case(3, 12, 8, 4, 6));
  cases.push_back(extract_patches_case(3, 12, 8, 4, 2));
  cases.push_back(extract_patches_case(2, 28, 28, 7, 11));
  for (int64_t kept : {6, 4}) {
    cases.push_back(vision_embed_forward_case(15, 6, kept, 33));
    cases.push_back(vision_embed_backward_case(15, 6, kept, 33));
  }
  cases.push_back(text_embed_forward_case(15, 5, 11, 33));
  cases.push_back(text_embed_backward_case(15, 5, 11, 33));
  cases.push_back(text_embed_backward_case(3, 4, 200, 130));
  cases.push_back(find_largest_token_case(15, 77));
  for (bool placed : {false, true}) {
    cases.push_back(pool_forward_case(15, 5, 33, placed));
    cases.push_back(pool_backward_case(15, 5, 33, placed));
  }
  for (const LossSizes& s : {LossSizes{7, 3, 2, 8}, LossSizes{3, 3, 0, 8}, LossSizes{15, 15, 0, 33},
                             LossSizes{130, 33, 65, 20}, LossSizes{300, 300, 0, 16}}) {
    cases.push_back(contrastive_forward_case(s));
    cases.push_back(contrastive_backward_case(s));
  }
  for (const TileSizes& s :
       {TileSizes{7, 2, 3, 0, 7, 8}, TileSizes{3, 0, 3, 0, 3, 8}, TileSizes{15, 0, 15, 0, 15, 33},
        TileSizes{130, 65, 33, 0, 130, 20}, TileSizes{300, 0, 300, 0, 300, 16}, TileSizes{64, 32, 32, 0, 32, 24},
        TileSizes{64, 0, 32, 32, 32, 24}, TileSizes{70, 5, 40, 20, 50, 17}, TileSizes{400, 0, 290, 285, 115, 8}}) {
    cases.push_back(siglip_forward_case(s));
    cases.push_back(siglip_backward_case(s));
  }
  AdamOptions clipped_norm, stable, stable_decay;
  clipped_norm.max_gradient_norm = 0.05;
  stable.clip_update = true;
  stable_decay = stable;
  stable_decay.decay_clipped_rate = true;
  const std::vector<int64_t> sizes{1, 33, 77, 40000, 129};
  cases.push_back(gradient_statistics_case({sizes, {}}));
  cases.push_back(adam_moments_case({sizes, {}}, false));
  cases.push_back(adam_moments_case({sizes, clipped_norm}, true));
  cases.push_back(adam_step_case({sizes, {}}, false));
  cases.push_back(adam_step_case({sizes, clipped_norm}, true));
  for (const AdamOptions& options : {AdamOptions{}, stable, stable_decay})
    cases.push_back(adam_update_case({sizes, options}));
  return cases;
}

// The sizes of a small CLIP: `samples` images in patches and captions, width 128 to 384.
inline std::vector<OpCase> speed_cases() {
  std::vector<OpCase> cases;
  for (const Shape& s : {Shape{4352, 192, 768}, Shape{16384, 128, 384}, Shape{2048, 384, 1536}}) {
    cases.push_back(linear_forward_case(s[0], s[1], s[2], true));
    cases.push_back(linear_backward_input_case(s[0], s[1], s[2]));
    cases.push_back(linear_backward_weight_case(s[0], s[1], s[2]));
  }
  cases.push_back(linear_forward_case(4352, 768, 192, true));
  cases.push_back(linear_gelu_forward_case(4352, 192, 768, Gelu::exact, true));
  cases.push_back(linear_gelu_backward_input_case(4352, 768, 192, Gelu::exact, false));
  for (const AttentionSizes& s :
       {AttentionSizes{256, 17, 6, 32, false}, AttentionSizes{256, 32, 4, 32, true},
        AttentionSizes{128, 50, 6, 64, false}, AttentionSizes{8, 257, 6, 64, false}}) {
    cases.push_back(attention_forward_case(s));
    cases.push_back(attention_backward_case(s, false));
  }
  for (Gelu kind : {Gelu::exact, Gelu::quick}) {
    cases.push_back(gelu_forward_case(4352, 768, kind));
    cases.push_back(gelu_backward_case(4352, 768, kind));
  }
  cases.push_back(layernorm_forward_case(4352, 192));
  cases.push_back(layernorm_backward_case(4352, 192));
  cases.push_back(layernorm_backward_case(16384, 384));
  cases.push_back(residual_forward_case(4352, 192, false));
  cases.push_back(residual_forward_case(4352, 192, true));
  cases.push_back(residual_backward_case(4352, 192));
  cases.push_back(residual_layernorm_forward_case(4352, 192, false));
  cases.push_back(residual_layernorm_backward_case(4352, 192, false, true));
  cases.push_back(accumulate_case(4352 * 768));
  cases.push_back(l2_normalize_forward_case(1024, 256));
  cases.push_back(l2_normalize_backward_case(1024, 256));
  cases.push_back(extract_patches_case(256, 28, 28, 7, 16));
  cases.push_back(vision_embed_forward_case(256, 16, 16, 192));
  cases.push_back(vision_embed_backward_case(256, 16, 16, 192));
  cases.push_back(text_embed_forward_case(256, 32, 10000, 128));
  cases.push_back(text_embed_backward_case(256, 32, 10000, 128));
  cases.push_back(pool_forward_case(256, 17, 192, true));
  cases.push_back(pool_backward_case(256, 17, 192, true));
  for (const LossSizes& s : {LossSizes{256, 256, 0, 128}, LossSizes{2048, 2048, 0, 256}}) {
    cases.push_back(contrastive_forward_case(s));
    cases.push_back(contrastive_backward_case(s, false));
    cases.push_back(siglip_forward_case(tile_of(s)));
    cases.push_back(siglip_backward_case(tile_of(s)));
  }
  const Arena arena{{200000, 147456, 147456, 1000, 600000, 400000, 192, 768}, {}};
  cases.push_back(gradient_statistics_case(arena));
  cases.push_back(adam_moments_case(arena, false));
  cases.push_back(adam_update_case(arena));
  cases.push_back(adam_step_case(arena, false));
  return cases;
}

}  // namespace switchback
