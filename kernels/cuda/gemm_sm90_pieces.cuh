// gemm_sm90_pieces.cuh: what the epilogues of gemm_sm90.cuh share: values that belong to columns, pairs of
// bf16, and the place of a row of a piece in shared memory.
//
// A warp owns 16 of every 64 rows of its tile. It works on pieces of 16 rows x kChunk columns: compute on the
// sums, lay the rounded results out in shared memory with stmatrix, hand them to the copy engine, which knows
// the bounds of y. An operand of the epilogue takes the same way in: the copy engine puts it where the result
// will lie, ldmatrix reads it in the layout of the sums, and the result overwrites it. No warp waits for
// another.
#pragma once

#include "kernels/cuda/gemm_sm90_tile.cuh"
#include "kernels/cuda/ptx/matrix_fragments.cuh"
#include "kernels/cuda/ptx/mbarrier.cuh"
#include "kernels/cuda/ptx/tma.cuh"

namespace switchback::sm90 {

__device__ __forceinline__ float2 unpack_bf16(uint32_t both) {
  return {__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000u)};
}
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&both);
}

// Values that belong to columns (bias, gamma, column scale) are the same for all rows. A warp keeps them
// spread over its lanes: lane l has columns 64 t + 2 l, +1 of the tile in register t, read from memory once
// per tile, long before they are needed. Column group j of 8 then finds the pair of lane l's columns, 2 (l
// mod 4), in lane 4 (j mod 8) + l mod 4.
template <class T>
struct ColumnPairs {
  uint32_t pair[T::kColumnRegisters];  // two bf16

  __device__ void load(const __nv_bfloat16* values, uint32_t absent, int first_column, int columns,
                       int lane) {
#pragma unroll
    for (int t = 0; t < T::kColumnRegisters; ++t) {
      const int column = first_column + 64 * t + 2 * lane;
      pair[t] = values && column < columns ? *reinterpret_cast<const uint32_t*>(values + column) : absent;
    }
  }
  __device__ float2 of_group(int j, int lane) const {
    return unpack_bf16(__shfl_sync(~0u, pair[j / 8], 4 * (j % 8) + lane % 4));
  }
};

template <class T>
struct ColumnScales {
  float2 pair[T::kColumnRegisters];

  __device__ void load(const float* values, int first_column, int columns, int lane) {
#pragma unroll
    for (int t = 0; t < T::kColumnRegisters; ++t) {
      const int column = first_column + 64 * t + 2 * lane;
      pair[t] = column < columns ? *reinterpret_cast<const float2*>(values + column) : float2{0.0f, 0.0f};
    }
  }
  __device__ float2 of_group(int j, int lane) const {
    const int from = 4 * (j % 8) + lane % 4;
    return {__shfl_sync(~0u, pair[j / 8].x, from), __shfl_sync(~0u, pair[j / 8].y, from)};
  }
};

// Byte offset in a piece of the 16-byte unit `unit` of row `row_in_piece`, as the copy engine swizzles it.
template <class T>
__device__ __forceinline__ uint32_t swizzled(int row_in_piece, int unit) {
  const uint32_t offset = row_in_piece * T::kChunk * 2 + unit * 16;
  return offset ^ ((offset >> 3) & (T::kChunk == 64 ? 0x70 : 0x30));
}

// Where a consumer warp's pieces of a tile lie: piece i is rows 64 (i / kChunks) + 0..15, columns kChunk (i
// mod kChunks) + 0..kChunk-1 from (row, column).
template <class T>
struct PiecePlaces {
  int row, column;
  __device__ int row_of(int i) const { return row + i / T::kChunks * 64; }
  __device__ int column_of(int i) const { return column + i % T::kChunks * T::kChunk; }
};

}  // namespace switchback::sm90
