// attention_forward.cuh: softmax attention of packed q, k, v on the GPU, in bf16.
//
//   out = softmax(scale q kᵀ + mask) v,  lse = log Σ exp(scores),  scale = 1/√D, per sample and head
//   qkv (B, T, 3C) bf16: q, k, v one after the other, each H heads of D = C/H
//   out (B, T, C) bf16, lse (B, H, T) f32
//
// causal: token i sees tokens 0 ... i. Scores, softmax and sums are f32; the probabilities are rounded to
// bf16 for the product with v. The result has the same bits every time.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "runtime/view.h"

namespace switchback::cuda {

// Head sizes that have a kernel: 32, 64, 80, 88, 104, 128.
bool attention_serves(int64_t head_size);

// Errors: names the head size that has no kernel, and those that have one.
void attention_forward(View out, View lse, CView qkv, int64_t heads, bool causal, cudaStream_t stream);

}  // namespace switchback::cuda
