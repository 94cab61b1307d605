// step_budget.h: what a training step must compute and move at least, by kernel group, from the shapes alone.
//
// M = B T rows, C width, H mlp width, bf16 activations, f32 gradients of parameters. The block is the fused
// one: GELU lives in the products' epilogues, the residual connection in the layernorm's kernel. Every
// operand of a kernel moves once between memory and chip; nothing stays in the L2 cache from one kernel to
// the next, though weights and small tensors do in truth.
//   product      y = x wᵀ:  2 M K N flops, bytes 2 (M K + N K + M N); a weight gradient is written in f32
//   attention    forward reads qkv, writes out (4 M C values, 4 B T² C flops); backward reads qkv, out, dout,
//                writes dqkv (8 M C, 10 B T² C); half the flops where a causal mask hides half
//   layernorm    with its residual: x, branch in, sum, normed out (4 M C) forward; dsum, dnormed, sum in, dx
//                out (4 M C) backward
//   optimizer    AdamW in one pass after the gradients' statistics: gradient twice, master, both moments read
//                and written, value written: 34 bytes a parameter
#pragma once

#include <array>
#include <string>
#include <string_view>

#include "models/flops.h"

namespace switchback {

enum KernelGroup : size_t {
  products_forward,
  products_input_gradient,
  products_weight_gradient,
  attention_forward_group,
  attention_backward_group,
  layernorm_forward_group,
  layernorm_backward_group,
  gelu_group,
  embedding_group,
  loss_group,
  optimizer_group,
  kernel_group_count
};

inline constexpr std::array<const char*, kernel_group_count> kernel_group_names = {
    "products forward",
    "products input gradient",
    "products weight gradient",
    "attention forward",
    "attention backward",
    "layernorm + residual fwd",
    "layernorm + residual bwd",
    "GELU (own kernels)",
    "embedding",
    "pooling and loss",
    "optimizer",
};

// Of a line of OpTimer's table: "linear forward", "mlp weight gradient", "gelu backward", "optimizer".
inline KernelGroup group_of(std::string_view name) {
  const auto has = [&](std::string_view part) { return name.find(part) != name.npos; };
  const bool backward = has("backward");
  if (has("optimizer")) return optimizer_group;
  if (has("input gradient")) return products_input_gradient;
  if (has("weight gradient")) return products_weight_gradient;
  if (has("attention")) return backward ? attention_backward_group : attention_forward_group;
  if (has("layernorm") || has("residual"))
    return backward ? layernorm_backward_group : layernorm_forward_group;
  if (has("gelu")) return gelu_group;
  if (has("linear") || has("project") || has("mlp")) return products_forward;
  if (has("embed") || has("patches")) return embedding_group;
  return loss_group;  // pool, l2_normalize, contrastive, siglip
}

struct Cost {
  double flops = 0, bytes = 0;
  void operator+=(const Cost& other) { flops += other.flops, bytes += other.bytes; }
};
using StepBudget = std::array<Cost, kernel_group_count>;

// The three products of a linear layer (M, K) -> (M, N). extra: values per row that the epilogue moves
// besides.
inline void add_linear(StepBudget& budget, double m, double k, double n, double extra_forward = 0,
                       double extra_input = 0) {
  const double flops = 2 * m * k * n;
  budget[products_forward] += {flops, 2 * (m * k + n * k + m * n + m * extra_forward)};
  budget[products_input_gradient] += {flops, 2 * (m * n + n * k + m * k + m * extra_input)};
  budget[products_weight_gradient] += {flops, 2 * (m * n + m * k) + 4 * n * k};
}

// whole_last: the last block computes all rows; else, behind attention, one row of every sample.
inline void add_tower(StepBudget& budget, double batch, double tokens, double c, double h, double layers,
                      bool causal, bool whole_last) {
  const double all = batch * tokens, pairs = batch * tokens * tokens * (causal ? 0.5 : 1);
  for (int64_t i = 0; i < static_cast<int64_t>(layers); ++i) {
    const double m = i + 1 < static_cast<int64_t>(layers) || whole_last ? all : batch;
    add_linear(budget, all, c, 3 * c);
    add_linear(budget, m, c, c);
    add_linear(budget, m, c, h, h);     // writes gelu(u) beside u
    add_linear(budget, m, h, c, 0, h);  // its input gradient reads u
    budget[attention_forward_group] += {4 * pairs * c, 2 * 4 * all * c};
    budget[attention_backward_group] += {10 * pairs * c, 2 * 8 * all * c};
    budget[layernorm_forward_group] += {0, 2 * 4 * (all + m) * c};
    budget[layernorm_backward_group] += {0, 2 * 4 * (all + m) * c};
  }
}

// text_length: columns of the text that are computed
inline StepBudget step_budget(const ClipConfig& config, int64_t batch_size, int64_t text_length) {
  const VisionConfig& v = config.vision;
  const TextConfig& t = config.text;
  const auto real = [](int64_t n) { return static_cast<double>(n); };
  const double batch = real(batch_size), patches = real(v.patches()), width = real(v.width);
  const double pixels = 3 * real(v.patch_size * v.patch_size), embed = real(config.embed_dim);
  const double vision_rows = batch * (patches + 1), text_rows = batch * real(text_length);
  const double parameters = real(parameter_count(config));
  StepBudget budget{};
  add_tower(budget, batch, patches + 1, width, real(v.mlp_width()), real(v.layers), false,
            config.whole_last_block);
  add_tower(budget, batch, real(text_length), real(t.width), real(t.mlp_width()), real(t.layers), true,
            config.whole_last_block);
  // The patch embedding has no input gradient; the projections work on one row per sample.
  budget[products_forward] += {2 * batch * patches * pixels * width, 2 * batch * patches * (pixels + width)};
  budget[products_weight_gradient] +=
      {2 * batch * patches * pixels * width, 2 * batch * patches * (pixels + width)};
  add_linear(budget, batch, width, embed);
  add_linear(budget, batch, real(t.width), embed);
  budget[layernorm_forward_group] += {0, 2 * 2 * vision_rows * width};  // ln_pre
  budget[layernorm_backward_group] += {0, 2 * 3 * vision_rows * width};
  const double bytes_in = batch * patches * pixels;
  budget[embedding_group] += {0, bytes_in + 2 * bytes_in};      // patches
  budget[embedding_group] += {0, 2 * 4 * vision_rows * width};  // positions, both ways
  budget[embedding_group] += {0, 2 * 3 * text_rows * real(t.width) + 4 * real(t.vocab_size) * real(t.width)};
  budget[loss_group] += {2 * 6 * batch * batch * embed, 2 * 4 * 4 * batch * embed};
  budget[loss_group] += {0, 2 * (vision_rows * width + text_rows * real(t.width))};  // pooling's gradient
  budget[optimizer_group] += {0, 34 * parameters};
  return budget;
}

}  // namespace switchback
