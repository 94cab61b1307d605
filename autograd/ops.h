// ops.h: the differentiable operations of a CLIP, coarse on purpose: one op is one or two kernels each way.
// Each stands in autograd/ops/<name>.cpp with its forward and backward pass in one function.
// Formulas: kernels/op_list.h. The results of layernorm and residual_layernorm may be forgotten and restored
// (Variable::forget_value). B samples, T tokens, C channels, E embedding size.
#pragma once

#include <memory>
#include <vector>

#include "autograd/tape.h"
#include "kernels/kernels.h"
#include "kernels/recipe.h"

namespace switchback {

class Communicator;

// How a linear layer is computed, and what its recipe has made of the weight for this step (without that the
// op makes it itself).
struct LinearPrecision {
  const LinearRecipe* recipe = &standard_recipe();
  std::shared_ptr<const PreparedWeight> weight;
};

// y (..., N) = x (..., K) wᵀ + bias;  w (N, K), bias (N) or absent
Variable linear(const Variable& x, const Variable& w, const Variable& bias = {},
                const LinearPrecision& precision = {});

// y (B, E) = x (B, C) p;  p (C, E): CLIP's projections, stored the other way round than a linear's weight
Variable project(const Variable& x, const Variable& p);

// y = gain (x - mean)/sqrt(var + epsilon) + bias over the last size
Variable layernorm(const Variable& x, const Variable& gain, const Variable& bias, double epsilon = 1e-5);

Variable gelu(const Variable& x, Gelu kind);

// out (B, T, C) from packed qkv (B, T, 3C)
Variable attention(const Variable& qkv, int64_t heads, bool causal);

// y = x + gamma branch; gamma (C) or absent
Variable residual(const Variable& x, const Variable& branch, const Variable& gamma = {});

// ---- what a block is made of: several of the above in one op ----------------------------------------------

// sum = residual(x, branch, gamma), normed = layernorm(sum, gain, bias)
struct Normed {
  Variable sum, normed;  // (..., C)
};
// Which codes are made along with the values, for the linears before and behind: of normed's rows, and of the
// rows of branch's gradient
struct RowFormats {
  Format normed = Format::none, dbranch = Format::none;
};
Normed residual_layernorm(const Variable& x, const Variable& branch, const Variable& gamma,
                          const Variable& gain, const Variable& bias, double epsilon = 1e-5,
                          const RowFormats& formats = {});

// y = linear(gelu(linear(x, fc_w, fc_b)), proj_w, proj_b).  keep_gelu: whether the GELU's result, half of
// what this op saves, is kept for the backward pass or made again there (the same bits)
Variable mlp(const Variable& x, const Variable& fc_w, const Variable& fc_b, const Variable& proj_w,
             const Variable& proj_b, Gelu kind, bool keep_gelu = true, const LinearPrecision& fc = {},
             const LinearPrecision& proj = {});

// ---- ways in and out --------------------------------------------------------------------------------------

// x (B, K+1, C) from patches (B K, C), class_embedding (C), positions (N+1, C); keep (B, K) i32 or undefined
Variable vision_embed(const Variable& patches, const Variable& class_embedding, const Variable& positions,
                      const Tensor& keep, int64_t batch);

// x (B, T, C) from tokens (B, T) i32, table (V, C), positions (≥ T, C)
Variable text_embed(const Variable& table, const Variable& positions, const Tensor& tokens);

// y (B, C): row place[b] of each x[b] (T, C); place (B) i32, undefined: row 0
Variable pool(const Variable& x, const Tensor& place);

// y (B, E) = x / |x|₂ in the statistics type (f32; f64 for f64)
Variable l2_normalize(const Variable& x);

// Rows of all parts one after the other: parts[i] (B_i, ...) -> (Σ B_i, ...)
Variable concat_rows(const std::vector<Variable>& parts);

// CLIP's symmetric cross entropy over the batch, one number. images, texts (B, E) normalised; logit_scale ()
Variable contrastive_loss(const Variable& images, const Variable& texts, const Variable& logit_scale);

// SigLIP's pairwise sigmoid loss, one number.
Variable siglip_loss(const Variable& images, const Variable& texts, const Variable& logit_scale,
                     const Variable& logit_bias);

// Both over the batch of all ranks: images, texts are this rank's rows, as many on every rank; the result is
// this rank's share. Shares add up over ranks, in loss and in every gradient: nothing is averaged.
Variable contrastive_loss(const Variable& images, const Variable& texts, const Variable& logit_scale,
                          Communicator& ranks);
Variable siglip_loss(const Variable& images, const Variable& texts, const Variable& logit_scale,
                     const Variable& logit_bias, Communicator& ranks);

}  // namespace switchback
