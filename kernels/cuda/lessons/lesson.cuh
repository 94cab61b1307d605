// lesson.cuh: the task of every rung of the ladder, and the rungs.
//
//   acc (M, N) = x (M, K) w (N, K)ᵀ in s32, exactly;   y = bf16(fma(float(acc), row_scale[m] · tensor_scale,
//   bias[n]))
//
// A rung is one file, complete in itself: kernel and launcher. Each starts from the one before and changes
// one idea. M is any number, N a multiple of 8, K a multiple of 16.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/cuda_check.cuh"
#include "kernels/cuda/gemm_int8.cuh"

namespace switchback::lessons {

struct Problem {
  int M, N, K;
  const int8_t* x;            // (M, K)
  const int8_t* w;            // (N, K)
  const float* row_scale;     // (M)
  const float* tensor_scale;  // (1)
  const __nv_bfloat16* bias;  // (N)
  __nv_bfloat16* y;           // (M, N)
  int* accumulators;          // (M, N) or null; if given, the bare sums are written here instead of y
};

__host__ __device__ inline int ceil_div(int n, int d) { return (n + d - 1) / d; }

// The plainest way out, used by rungs 1 to 5: a thread writes two neighbouring columns n, n + 1 of row m
// itself.
__device__ __forceinline__ void write_pair(const Problem& p, int m, int n, int a, int b) {
  if (m >= p.M || n >= p.N) return;
  const int64_t at = static_cast<int64_t>(m) * p.N + n;
  if (p.accumulators) {
    *reinterpret_cast<int2*>(p.accumulators + at) = {a, b};
    return;
  }
  const float scale = __fmul_rn(p.row_scale[m], *p.tensor_scale);
  const __nv_bfloat162 bias = *reinterpret_cast<const __nv_bfloat162*>(p.bias + n);
  *reinterpret_cast<__nv_bfloat162*>(p.y + at) =
      __floats2bfloat162_rn(gemm_int8_element<Extra::none>(a, scale, __low2float(bias), 0.0f, 1.0f),
                            gemm_int8_element<Extra::none>(b, scale, __high2float(bias), 0.0f, 1.0f));
}

void naive(const Problem& p, cudaStream_t stream);         // 1
void tensor_cores(const Problem& p, cudaStream_t stream);  // 2
void warpgroups(const Problem& p, cudaStream_t stream);    // 3
void ring(const Problem& p, cudaStream_t stream);          // 4
void clusters(const Problem& p, cudaStream_t stream);      // 5
void bulk_stores(const Problem& p, cudaStream_t stream);   // 6
void ping_pong(const Problem& p, cudaStream_t stream);     // 7

}  // namespace switchback::lessons
