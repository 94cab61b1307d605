// gemm_int8.cuh: what an int8 matrix product with a fused epilogue computes, said once for all its kernels.
//
//   acc[m, n] = Σ_k x[m, k] w[n, k]                  exact, in s32: |acc| <= 127² K < 2³¹ for K <= 131072
//   r[m, n]   = fma(float(acc), row_scale[m] · weight_scale, bias[n])
//   y[m, n]   = bf16(r)                                                    Extra::none
//             = bf16(fma(gamma[n], r, residual[m, n]))                     Extra::residual
//             = bf16(r · gelu_derivative(preactivation[m, n]))             Extra::gelu_derivative
//
// weight_scale is one value, or one per column; gamma is 1 where absent.
// This is the specification, to the bit: `·` and fma round once (nearest, ties to even), float(acc) rounds
// once, an absent bias is +0, nothing is contracted or reordered. The functions below are compiled for host
// and device, so the CPU definition can call them; integer addition is associative, so every tiling gives the
// same result.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "runtime/view.h"

namespace switchback {

enum class Extra { none, residual, gelu_derivative };

// Shapes: y (M, N) bf16, x (M, K) i8, w (N, K) i8, row_scale (M) f32, weight_scale (1) or (N) f32; optional:
// bias (N), gamma (N), and for its Extra residual or preactivation (M, N), all bf16. K is a multiple of 16, N
// of 8; x, w, y and `extra` start on 16-byte borders. y may be the same memory as `extra`.
struct GemmInt8 {
  View y;
  CView x, w;
  CView row_scale, weight_scale;
  CView bias = {};
  Extra extra_kind = Extra::none;
  CView extra = {};  // residual or preactivation
  CView gamma = {};
};

// Multiplications and additions that round once, whatever the compiler is told about contraction.
__host__ __device__ inline float multiply_rounded(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;  // compile the host side with -ffp-contract=off
#endif
}
__host__ __device__ inline float fma_rounded(float a, float b, float c) {
#ifdef __CUDA_ARCH__
  return __fmaf_rn(a, b, c);
#else
  return std::fma(a, b, c);
#endif
}

// d/dh of h Φ(h) = Φ(h) + h φ(h), as 1/2 + h Q(h²): the function minus 1/2 is odd. Q is a minimax polynomial
// of degree 9 in t = 2 (h/4.5)² - 1; beyond 4.5 the function is taken as constant. Absolute error < 8e-5
// everywhere, a fiftieth of a bf16 step at 1. Fourteen instructions, no table, no special function: the CPU
// gets the same bits.
__host__ __device__ inline float gelu_derivative(float h) {
  h = fminf(fmaxf(h, -4.5f), 4.5f);
  const float t = fma_rounded(multiply_rounded(h, h), 0.09876543283462524f, -1.0f);
  float q = -0.024722693488001823f;
  q = fma_rounded(q, t, 0.05596683919429779f);
  q = fma_rounded(q, t, -0.0454850010573864f);
  q = fma_rounded(q, t, 0.04773306846618652f);
  q = fma_rounded(q, t, -0.08775714784860611f);
  q = fma_rounded(q, t, 0.10503875464200974f);
  q = fma_rounded(q, t, -0.0953679084777832f);
  q = fma_rounded(q, t, 0.08618596196174622f);
  q = fma_rounded(q, t, -0.08992298692464828f);
  q = fma_rounded(q, t, 0.15944576263427734f);
  return fma_rounded(q, h, 0.5f);
}

// One element of y before its rounding to bf16. scale = row_scale · weight_scale, rounded.
template <Extra kExtra>
__host__ __device__ inline float gemm_int8_element(int acc, float scale, float bias, float extra,
                                                   float gamma) {
  const float r = fma_rounded(static_cast<float>(acc), scale, bias);
  if constexpr (kExtra == Extra::residual) return fma_rounded(gamma, r, extra);
  if constexpr (kExtra == Extra::gelu_derivative) return multiply_rounded(r, gelu_derivative(extra));
  return r;
}

// Throws an Error that names the broken precondition.
void check_gemm_int8(const GemmInt8& a);

// The product, by the kernel that fits the current device. Asynchronous; may be captured in a graph.
void gemm_int8(const GemmInt8& a, cudaStream_t stream);
void gemm_int8_sm90(const GemmInt8& a, cudaStream_t stream);  // Hopper (gemm_int8_sm90.cuh)
void gemm_int8_mma(const GemmInt8& a, cudaStream_t stream);   // Ampere and later (gemm_int8_mma.cuh)

}  // namespace switchback
