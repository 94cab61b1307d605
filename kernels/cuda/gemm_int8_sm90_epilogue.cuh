// gemm_int8_sm90_epilogue.cuh: from the sums in a consumer's registers to y in memory.
//
// A warp owns 16 of every 64 rows of its tile. It works on pieces of 16 rows x kChunk columns: scale and
// round the sums (gemm_int8_element), lay them out in shared memory with stmatrix, hand them to the copy
// engine, which knows the bounds of y. A residual or pre-activation takes the same way in: the copy engine
// puts it where the result will lie, ldmatrix reads it in the layout of the sums, and the result overwrites
// it. No warp waits for another.
#pragma once

#include "kernels/cuda/gemm_int8.cuh"
#include "kernels/cuda/gemm_int8_sm90_tile.cuh"
#include "kernels/cuda/ptx/matrix_fragments.cuh"
#include "kernels/cuda/ptx/mbarrier.cuh"
#include "kernels/cuda/ptx/tma.cuh"

namespace switchback::sm90 {

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
    const uint32_t both = __shfl_sync(~0u, pair[j / 8], 4 * (j % 8) + lane % 4);
    return {__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000u)};
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

__device__ __forceinline__ float2 unpack_bf16(uint32_t both) {
  return {__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000u)};
}
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&both);
}

// The state of one consumer warp that outlives the product: scales fetched before it, and where its rows are.
template <class T, Extra kExtra, bool kColumnScale>
struct Epilogue {
  uint8_t (*pieces)[16 * T::kChunk * 2];  // this warp's buffers
  uint64_t* extra_loaded;
  int lane;
  int uses = 0;  // of each buffer so far: its parity is that of extra_loaded

  int row, column;  // of the warp's first piece
  float row_scale[T::kBlocksM][2];
  ColumnPairs<T> bias, gamma;
  ColumnScales<T> column_scale;

  // Piece i is rows 64 (i / kChunks) + 0..15, columns kChunk (i mod kChunks) + 0..kChunk-1 from (row,
  // column).
  __device__ int piece_row(int i) const { return row + i / T::kChunks * 64; }
  __device__ int piece_column(int i) const { return column + i % T::kChunks * T::kChunk; }

  // Before the product: everything the epilogue will need from memory is on its way.
  __device__ __forceinline__ void prefetch(const Parameters& p, const CUtensorMap& extra_map, int first_row,
                                           int first_column) {
    row = first_row, column = first_column;
    const float tensor_scale = kColumnScale ? 1.0f : *p.weight_scale;
#pragma unroll
    for (int block = 0; block < T::kBlocksM; ++block) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int m = row + 64 * block + 8 * half + lane / 4;
        const float scale = m < p.M ? p.row_scale[m] : 0.0f;
        row_scale[block][half] = kColumnScale ? scale : __fmul_rn(scale, tensor_scale);
      }
    }
    bias.load(p.bias, 0, column, p.N, lane);
    if constexpr (kColumnScale) column_scale.load(p.weight_scale, column, p.N, lane);
    if constexpr (kExtra == Extra::residual) gamma.load(p.gamma, 0x3f803f80u, column, p.N, lane);
    if constexpr (kExtra != Extra::none) {
      if (lane == 0) {
        ptx::tma_store_wait_read<0>();  // the last tile's stores have left the buffers
#pragma unroll
        for (int i = 0; i < T::kBuffers; ++i) load_extra(extra_map, i);
      }
    }
  }

  __device__ __forceinline__ void load_extra(const CUtensorMap& extra_map, int i) {
    uint64_t* loaded = &extra_loaded[i % T::kBuffers];
    ptx::mbarrier_arrive_and_expect(loaded, 16 * T::kChunk * 2);
    ptx::tma_load(pieces[i % T::kBuffers], &extra_map, piece_column(i), piece_row(i), loaded);
  }

  // Byte offset in a piece of the 16-byte unit `unit` of row `row_in_piece`, as the copy engine swizzles it.
  __device__ static uint32_t swizzled(int row_in_piece, int unit) {
    const uint32_t offset = row_in_piece * T::kChunk * 2 + unit * 16;
    return offset ^ ((offset >> 3) & (T::kChunk == 64 ? 0x70 : 0x30));
  }

  // After the product: accumulators -> bf16 -> staging buffer -> copy engine, piece by piece.
  __device__ __forceinline__ void finish(const int (&acc)[T::kBlocksM][T::kTileN / 2],
                                         const CUtensorMap& y_map, const CUtensorMap& extra_map) {
    // The row and unit whose address this lane gives to ldmatrix and stmatrix (matrix_fragments.cuh):
    // matrices 0 and 1 are rows 0-7 and 8-15 of one column group, matrices 2 and 3 of the next.
    const int lane_row = lane % 16, lane_unit = lane / 16;
#pragma unroll
    for (int i = 0; i < T::kPieces; ++i) {
      const int block = i / T::kChunks, first_group = i % T::kChunks * (T::kChunk / 8);
      uint8_t* piece = pieces[i % T::kBuffers];
      if constexpr (kExtra == Extra::none) {
        if (lane == 0) ptx::tma_store_wait_read<T::kBuffers - 1>();
        __syncwarp();
      } else {
        ptx::mbarrier_wait(&extra_loaded[i % T::kBuffers], (uses + i / T::kBuffers) & 1, "epilogue", i);
      }
      uint32_t address[T::kChunk / 16], extra[T::kChunk / 16][4] = {};  // per pair of column groups
#pragma unroll
      for (int pair = 0; pair < T::kChunk / 16; ++pair) {
        address[pair] = ptx::shared_address(piece) + swizzled(lane_row, 2 * pair + lane_unit);
        if constexpr (kExtra != Extra::none) ptx::load_matrices(extra[pair], address[pair]);
      }
#pragma unroll
      for (int pair = 0; pair < T::kChunk / 16; ++pair) {
        uint32_t result[4];
#pragma unroll
        for (int q = 0; q < 4; ++q) {  // column group q / 2, rows of half q % 2
          const int j = first_group + 2 * pair + q / 2, half = q % 2;
          const float2 b = bias.of_group(j, lane);
          float2 scale = {row_scale[block][half], row_scale[block][half]};
          if constexpr (kColumnScale) {
            const float2 c = column_scale.of_group(j, lane);
            scale = {__fmul_rn(scale.x, c.x), __fmul_rn(scale.y, c.y)};
          }
          float2 g = {1.0f, 1.0f};
          if constexpr (kExtra == Extra::residual) g = gamma.of_group(j, lane);
          const float2 e = unpack_bf16(extra[pair][q]);
          result[q] =
              pack_bf16(gemm_int8_element<kExtra>(acc[block][4 * j + 2 * half], scale.x, b.x, e.x, g.x),
                        gemm_int8_element<kExtra>(acc[block][4 * j + 2 * half + 1], scale.y, b.y, e.y, g.y));
        }
        ptx::store_matrices(address[pair], result);
      }
      ptx::fence_async_proxy();
      __syncwarp();
      if (lane == 0) {
        ptx::tma_store(&y_map, piece_column(i), piece_row(i), piece);
        ptx::tma_store_commit();
        if constexpr (kExtra != Extra::none) {  // refill the buffer of the piece before this one
          if (i > 0 && i - 1 + T::kBuffers < T::kPieces) {
            ptx::tma_store_wait_read<1>();
            load_extra(extra_map, i - 1 + T::kBuffers);
          }
        }
      }
    }
    uses += T::kPieces / T::kBuffers;
  }
};

// For tests: the exact sums, straight from the registers.
template <class T>
__device__ __forceinline__ void write_accumulators(const int (&acc)[T::kBlocksM][T::kTileN / 2],
                                                   const Parameters& p, int row, int column, int lane) {
#pragma unroll
  for (int block = 0; block < T::kBlocksM; ++block) {
#pragma unroll
    for (int j = 0; j < T::kTileN / 8; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int m = row + 64 * block + 8 * half + lane / 4, n = column + 8 * j + 2 * (lane % 4);
        if (m < p.M && n < p.N) {
          *reinterpret_cast<int2*>(p.accumulators + static_cast<int64_t>(m) * p.N + n) =
              int2{acc[block][4 * j + 2 * half], acc[block][4 * j + 2 * half + 1]};
        }
      }
    }
  }
}

}  // namespace switchback::sm90
