// attention_backward_common.cuh: what both backward paths need of a head: where its rows are, and their
// statistics.
#pragma once

#include "kernels/cuda/attention_common.cuh"

namespace switchback::cuda {

// Row statistics in shared memory, chunk_rows each: p = exp2(scale' s - lse_log2), ds = p (dp - delta).
struct RowStatistics {
  float* lse_log2;
  float* delta;
};

// Fills rows 0 ... rows-1 (a multiple of 8); those from `valid` on get lse = inf, so that their p is 0.
// Four lanes share a row. Reads out and dout from global memory, while the copies to shared memory are under
// way.
template <int D, int threads, int rows_at_once = 2>
__device__ __forceinline__ void compute_statistics(RowStatistics to, const bf16* dout, const bf16* out,
                                                   const float* lse, int pitch, int rows, int valid) {
  const int part = threadIdx.x % 4;
#pragma unroll rows_at_once
  for (int row = threadIdx.x % threads / 4; row < rows; row += threads / 4) {
    float sum = 0;
    if (row < valid) {
      const uint4* a = reinterpret_cast<const uint4*>(dout + row * pitch);
      const uint4* b = reinterpret_cast<const uint4*>(out + row * pitch);
#pragma unroll
      for (int chunk = 0; chunk < (D / 8 + 3) / 4; ++chunk) {
        if (4 * chunk + part < D / 8) {
          const uint4 x = a[4 * chunk + part], y = b[4 * chunk + part];
          sum += low_bf16(x.x) * low_bf16(y.x) + high_bf16(x.x) * high_bf16(y.x);
          sum += low_bf16(x.y) * low_bf16(y.y) + high_bf16(x.y) * high_bf16(y.y);
          sum += low_bf16(x.z) * low_bf16(y.z) + high_bf16(x.z) * high_bf16(y.z);
          sum += low_bf16(x.w) * low_bf16(y.w) + high_bf16(x.w) * high_bf16(y.w);
        }
      }
    }
    sum = quad_sum(sum);
    if (part == 0) {
      to.delta[row] = sum;
      to.lse_log2[row] = row < valid ? lse[row] * log2_of_e : INFINITY;
    }
  }
}

// What a block of threads needs to know of its head.
template <int D>
struct Head {
  const bf16 *q, *k, *v, *dout, *out;  // row 0 of the head's columns
  const float* lse;
  bf16 *dq, *dk, *dv;
  int T, C, pitch;
  float scale, scale_log2;
  bool accumulate;

  __device__ Head(bf16* dqkv, const bf16* dout_, const bf16* qkv, const bf16* out_, const float* lse_,
                  const AttentionShape& shape, int number, bool accumulate_)
      : T(shape.tokens),
        C(shape.channels()),
        pitch(shape.qkv_pitch()),
        scale(shape.scale),
        scale_log2(shape.scale * log2_of_e),
        accumulate(accumulate_) {
    const int64_t first_token = static_cast<int64_t>(number / shape.heads) * T;
    const int column = number % shape.heads * D;
    q = qkv + first_token * pitch + column, k = q + C, v = k + C;
    dq = dqkv + first_token * pitch + column, dk = dq + C, dv = dk + C;
    dout = dout_ + first_token * C + column, out = out_ + first_token * C + column;
    lse = lse_ + static_cast<int64_t>(number) * T;
  }
};

}  // namespace switchback::cuda
