// attention_backward.cuh: the gradient of attention_forward.cuh's formula.
//
//   p = exp(scale q kᵀ - lse),  dp = dout vᵀ,  delta = Σ_D dout out,  ds = p (dp - delta)
//   dv = pᵀ dout,  dq = scale ds k,  dk = scale dsᵀ q
//   dqkv (B, T, 3C) bf16 from dout (B, T, C), qkv (B, T, 3C), out (B, T, C) bf16 and lse (B, H, T) f32
//
// Sums are f32; p and ds are rounded to bf16 for the products. Every element is summed by one warp in a fixed
// order, without atomics: the result has the same bits every time.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "runtime/view.h"

namespace switchback::cuda {

// Serves the head sizes of attention_serves(). Needs no scratch memory.
void attention_backward(Sink dqkv, CView dout, CView qkv, CView out, CView lse, int64_t heads, bool causal,
                        cudaStream_t stream);

}  // namespace switchback::cuda
