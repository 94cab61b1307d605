// gemm_bf16.cuh: a bf16 matrix product with a fused epilogue: what it computes, said once.
//
//   r[m, n] = Σ_k x[m, k] w[n, k] + bias[n]          in f32; an absent bias is 0
//
//   After::nothing         y = bf16(r)
//   After::gelu            second = bf16(r),  y = bf16(gelu(second))
//   After::gelu_backward   y = bf16(r · gelu'(operand)),  second = bf16(gelu(operand))
//
// gelu and gelu' as gelu.cuh has them: gelu of the rounded value, so that it can be computed again, to the
// same bits, from `second` alone. Sums run over k in the same order on every call.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/kernels.h"

namespace switchback::cuda {

enum class After : uint8_t { nothing, gelu, gelu_backward };

// Row-major bf16 matrices: y, operand, second (M, N), x (M, K), bias (N). w is (N, K), or (K, N) where
// w_is_k_by_n. `second` may be absent (nobody wants it); y may be the same memory as `operand`. GELU forward
// wants w (N, K), backward (K, N) and no bias.
struct GemmBf16 {
  int64_t M = 0, N = 0, K = 0;
  const void* x = nullptr;
  const void* w = nullptr;
  bool w_is_k_by_n = false;
  const void* bias = nullptr;
  void* y = nullptr;
  After after = After::nothing;
  const void* operand = nullptr;
  void* second = nullptr;
  Gelu gelu = Gelu::exact;
};

// The tiles of the kernel for Hopper that serve this product: 0, none, when the current device is no Hopper,
// a row is not a multiple of 16 bytes or a matrix does not start on a 16-byte border. Tiles are numbered from
// 0; a number keeps its meaning.
int gemm_bf16_tiles();
const char* gemm_bf16_name(int tile);
bool gemm_bf16_has(const GemmBf16& a, int tile);
// The tile that should be the fastest; -1: none serves.
int gemm_bf16_choose(const GemmBf16& a);
void gemm_bf16(const GemmBf16& a, int tile, cudaStream_t stream);

}  // namespace switchback::cuda
