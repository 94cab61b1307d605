// wide_cases.h: cases for the GPU beyond those of every device: the ops without a definition of their own in
// tests/kernels, products around the borders of tiles, sequences on both sides of every choice of a kernel.
#pragma once

#include "tests/kernels/op_cases.h"

namespace switchback {

inline OpCase fill_case(int64_t n) {
  return {
      .name = concat("fill ", Shape{n}),
      .operands = {output("to", {n})},
      .call = [](const Bound& x) { x.k.fill(x("to"), -2.5); },
      .define = [=](Arrays& x) { x["to"] = Array(n, -2.5); },
  };
}

// Doubles that no shorter type holds exactly, into T.
inline OpCase cast_case(int64_t n) {
  return {
      .name = concat("cast ", Shape{n}),
      .operands = {random("from", {n}, 4, 0, Operand::f64), output("to", {n})},
      .call = [](const Bound& x) { x.k.cast(x("to"), x("from")); },
      .define = [](Arrays& x) { x["to"] = x["from"]; },
      .tolerance_f64 = 0,
  };
}

// Without a definition: tests/kernels/test_choices.cpp holds the CPU's draws to account.
inline OpCase choose_patches_case(int64_t samples, int64_t kept, int64_t patches) {
  return {
      .name = concat("choose_patches ", Shape{samples, kept, patches}),
      .operands = {given("step", {1}, {11}, Operand::i64), output("keep", {samples, kept}, Operand::i32)},
      .call = [=](const Bound& x) { x.k.choose_patches(x("keep"), patches, 0x123456789u, x("step"), 3); },
      .define = nullptr,
      .tolerance_f32 = 0,
      .tolerance_bf16 = 0,
  };
}

// dx lies where dsum does.
inline OpCase residual_layernorm_backward_in_place_case(int64_t rows, int64_t cols) {
  OpCase op = residual_layernorm_backward_case(rows, cols, true, true);
  op.name += " in place";
  std::erase_if(op.operands, [](const Operand& o) { return o.name == "dx" || o.name == "dsum"; });
  op.operands.push_back(random("dx", {rows, cols}, 1, 0, Operand::value, Operand::in_out));
  op.call = [=](const Bound& x) {
    x.k.residual_layernorm_backward(x("dx"), x.sink("dbranch"), x.sink("dbranch_sum"), x.sink("dgamma"),
                                    x.sink("dgain"), x.sink("dbias"), x("dx"), x("dy"), x("x"), x("mean"), x("rstd"),
                                    x("gain"), x("branch"), x("gamma"));
  };
  op.define = nullptr;
  return op;
}

inline std::vector<OpCase> wide_cases() {
  std::vector<OpCase> all;
  for (int64_t n : {1, 15, 129, 257, 2049}) {
    all.push_back(fill_case(n));
    all.push_back(cast_case(n));
  }
  all.push_back(choose_patches_case(33, 5, 16));
  all.push_back(choose_patches_case(2, 128, 257));
  // Rows 1, 15, 129, 257 and the borders of tiles of 64, 128 and 256; inner sizes that no tile divides.
  for (const Shape& s : {Shape{1, 64, 256}, Shape{15, 72, 136}, Shape{129, 136, 264}, Shape{257, 200, 520},
                         Shape{257, 77, 33}, Shape{64, 512, 128}, Shape{128, 64, 256}, Shape{256, 192, 384},
                         Shape{384, 1032, 512}, Shape{1000, 256, 768}, Shape{1, 1, 257}, Shape{257, 1, 1}}) {
    for (bool with_bias : {false, true}) all.push_back(linear_forward_case(s[0], s[1], s[2], with_bias));
    all.push_back(linear_backward_input_case(s[0], s[1], s[2]));
    all.push_back(linear_backward_weight_case(s[0], s[1], s[2]));
  }
  // 96 | 97 and 320 | 321 tokens part the kernels for short, middle and long sequences; 577 is a picture of
  // 384 pixels in patches of 16; heads of 104 and 128 make chunks of it. 150 heads are more than a GPU has
  // multiprocessors.
  for (const AttentionSizes& s :
       {AttentionSizes{1, 64, 2, 64, true},    AttentionSizes{1, 65, 2, 64, false},
        AttentionSizes{1, 96, 1, 64, true},    AttentionSizes{1, 97, 1, 64, true},
        AttentionSizes{1, 197, 3, 64, false},  AttentionSizes{1, 257, 2, 80, false},
        AttentionSizes{1, 257, 1, 80, true},   AttentionSizes{1, 257, 1, 88, false},
        AttentionSizes{1, 257, 1, 104, false}, AttentionSizes{1, 320, 1, 64, false},
        AttentionSizes{1, 321, 1, 64, true},   AttentionSizes{1, 321, 1, 80, false},
        AttentionSizes{1, 577, 1, 64, false},  AttentionSizes{1, 577, 1, 80, true},
        AttentionSizes{1, 577, 1, 104, false}, AttentionSizes{1, 577, 1, 128, true},
        AttentionSizes{1, 1025, 1, 64, true},  AttentionSizes{3, 100, 50, 64, false},
        AttentionSizes{3, 50, 50, 64, false},  AttentionSizes{2, 33, 1, 32, true},
        AttentionSizes{1, 129, 1, 32, false},  AttentionSizes{1, 15, 3, 128, false},
        AttentionSizes{2, 129, 3, 20, true}}) {
    all.push_back(attention_forward_case(s));
    all.push_back(attention_backward_case(s));
  }
  for (const LossSizes& s : {LossSizes{257, 257, 0, 64}, LossSizes{129, 129, 0, 72}}) {
    all.push_back(contrastive_forward_case(s));
    all.push_back(contrastive_backward_case(s));
    all.push_back(siglip_forward_case(tile_of(s)));
    all.push_back(siglip_backward_case(tile_of(s)));
  }
  // The borders of a warp's 256 columns and of the 1792 that one sweep takes, and so many rows that the
  // blocks that stay on the GPU take several each.
  for (const auto& [rows, cols] : std::vector<std::pair<int64_t, int64_t>>{{1, 768},
                                                                           {15, 1280},
                                                                           {129, 1664},
                                                                           {257, 40},
                                                                           {129, 8},
                                                                           {15, 248},
                                                                           {33, 256},
                                                                           {257, 264},
                                                                           {5, 1792},
                                                                           {5, 1800},
                                                                           {4999, 64},
                                                                           {1601, 1280}}) {
    all.push_back(layernorm_forward_case(rows, cols));
    all.push_back(layernorm_backward_case(rows, cols));
    for (bool scaled : {false, true}) {
      all.push_back(residual_layernorm_forward_case(rows, cols, scaled));
      all.push_back(residual_layernorm_backward_case(rows, cols, scaled, true));
    }
    all.push_back(residual_layernorm_backward_in_place_case(rows, cols));
    all.push_back(residual_backward_case(rows, cols));
    all.push_back(gelu_backward_case(rows, cols, Gelu::quick));
    all.push_back(l2_normalize_forward_case(rows, cols));
    all.push_back(l2_normalize_backward_case(rows, cols));
  }
  // Nothing to do is done: sums over no rows are 0.
  all.push_back(linear_forward_case(0, 33, 20, true));
  all.push_back(linear_backward_input_case(0, 33, 20));
  all.push_back(linear_backward_weight_case(0, 33, 20));
  all.push_back(gelu_forward_case(0, 33, Gelu::exact));
  all.push_back(gelu_backward_case(0, 33, Gelu::exact));
  all.push_back(residual_forward_case(0, 33, true));
  all.push_back(residual_backward_case(0, 33));
  all.push_back(layernorm_forward_case(0, 33));
  all.push_back(layernorm_backward_case(0, 33));
  all.push_back(l2_normalize_forward_case(0, 33));
  all.push_back(l2_normalize_backward_case(0, 33));
  return all;
}

}  // namespace switchback
