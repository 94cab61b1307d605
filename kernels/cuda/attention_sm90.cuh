// attention_sm90.cuh: the two products of attention_common.cuh on Hopper's warpgroup instructions.
//
// A tile is 64 rows, 16 for each warp of a warpgroup. Own rows and p are A operands and come from registers, as
// before; X is the B operand and stays in shared memory: no ldmatrix, which is what limits the mma.sync kernels.
#pragma once

#include <cstdint>

#include "kernels/cuda/attention_common.cuh"
#include "kernels/cuda/ptx/wgmma_bf16.cuh"

namespace switchback::cuda {

// A matrix (rows, D) in shared memory, [D/8 chunks][rows and one more][8]: see wgmma_bf16.cuh.
template <int D>
struct ChunkedRows {
  uint32_t base, chunk_pitch;

  static __host__ __device__ int bytes(int rows) { return D / 8 * (rows + 1) * 16; }
  __device__ ChunkedRows(uint32_t base_, int rows) : base(base_), chunk_pitch((rows + 1) * 16) {}

  template <int threads>
  __device__ __forceinline__ void copy_async(const bf16* from, int pitch, int rows, int valid) const {
    for (int i = threadIdx.x; i < rows * (D / 8); i += threads) {
      const int row = i / (D / 8), chunk = i % (D / 8);
      const bool inside = row < valid;
      copy_16_async(base + chunk * chunk_pitch + row * 16, from + (inside ? row * pitch + chunk * 8 : 0), inside);
    }
  }
};

// s (64, 8 n_tiles) = or += Y[own_row0 ... own_row0+63] (64, D) · X[row0 ... row0 + 8 n_tiles]ᵀ. Rows of Y that do not
// exist are whatever follows in shared memory: they only reach rows of s that nobody stores.
template <int D, int n_tiles>
__device__ __forceinline__ void issue_scores(float (&s)[n_tiles][4], const ChunkedRows<D>& y, int own_row0,
                                             const ChunkedRows<D>& x, int row0, bool keep) {
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
    const uint32_t step = 2 * k * x.chunk_pitch;
    wgmma(s, describe<false>(y.base + own_row0 * 16 + step, y.chunk_pitch),
          describe<false>(x.base + row0 * 16 + step, x.chunk_pitch), keep || k > 0);
  }
}

// sum (64, D) += p (64, 16 k_tiles) · X[row0 ... row0 + 16 k_tiles]
template <int D, int k_tiles>
__device__ __forceinline__ void issue_sums(float (&sum)[D / 8][4], const uint32_t (&p)[k_tiles][4],
                                           const ChunkedRows<D>& x, int row0) {
#pragma unroll
  for (int k = 0; k < k_tiles; ++k) {
    wgmma<true>(sum, p[k], describe<true>(x.base + (row0 + 16 * k) * 16, x.chunk_pitch), 1);
  }
}

// Walks in steps of 64 rows, with a last step of 16 where that is enough: step(n_tiles, at).
template <class Step>
__device__ __forceinline__ void for_each_step_of_64(int from, int end, Step step) {
  int at = from;
  for (; at + 16 < end; at += 64) step(std::integral_constant<int, 8>{}, at);
  if (at < end) step(std::integral_constant<int, 2>{}, at);
}

}  // namespace switchback::cuda
