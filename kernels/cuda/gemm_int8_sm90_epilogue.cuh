// gemm_int8_sm90_epilogue.cuh: from the sums of an int8 product, in a consumer's registers, to y in memory:
// scale, add, round (gemm_int8_element), in the pieces of gemm_sm90_pieces.cuh.
#pragma once

#include "kernels/cuda/gemm_int8.cuh"
#include "kernels/cuda/gemm_sm90_pieces.cuh"

namespace switchback::sm90 {

// The state of one consumer warp that outlives the product: scales fetched before it, and where its rows are.
template <class T, Extra kExtra, bool kColumnScale>
struct Int8Epilogue {
  struct Arguments {
    CUtensorMap y_map, extra_map;
    const float* row_scale;
    const float* weight_scale;
    const __nv_bfloat16* bias;
    const __nv_bfloat16* gamma;
  };
  static_assert(T::kPieces % T::kBuffers == 0);

  const Arguments& arguments;
  const Walk& walk;
  uint8_t (*pieces)[T::kPieceBytes];  // this warp's buffers
  uint64_t* extra_loaded;
  int lane;
  int uses = 0;  // of each buffer so far: its parity is that of extra_loaded

  PiecePlaces<T> place;
  float row_scale[T::kBlocksM][2];
  ColumnPairs<T> bias, gamma;
  ColumnScales<T> column_scale;

  __device__ Int8Epilogue(const Arguments& arguments, const Walk& walk, uint8_t (*pieces)[T::kPieceBytes],
                          uint64_t* loaded, int lane)
      : arguments(arguments), walk(walk), pieces(pieces), extra_loaded(loaded), lane(lane) {}

  // Before the product: everything the epilogue will need from memory is on its way.
  __device__ __forceinline__ void prefetch(int row, int column, int) {
    place = {row, column};
    const float tensor_scale = kColumnScale ? 1.0f : *arguments.weight_scale;
#pragma unroll
    for (int block = 0; block < T::kBlocksM; ++block) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int m = row + 64 * block + 8 * half + lane / 4;
        const float scale = m < walk.M ? arguments.row_scale[m] : 0.0f;
        row_scale[block][half] = kColumnScale ? scale : __fmul_rn(scale, tensor_scale);
      }
    }
    bias.load(arguments.bias, 0, column, walk.N, lane);
    if constexpr (kColumnScale) column_scale.load(arguments.weight_scale, column, walk.N, lane);
    if constexpr (kExtra == Extra::residual) gamma.load(arguments.gamma, 0x3f803f80u, column, walk.N, lane);
    if constexpr (kExtra != Extra::none) {
      if (lane == 0) {
        ptx::tma_store_wait_read<0>();  // the last tile's stores have left the buffers
#pragma unroll
        for (int i = 0; i < T::kBuffers; ++i) load_extra(i);
      }
    }
  }

  __device__ __forceinline__ void load_extra(int i) {
    uint64_t* loaded = &extra_loaded[i % T::kBuffers];
    ptx::mbarrier_arrive_and_expect(loaded, T::kPieceBytes);
    ptx::tma_load(pieces[i % T::kBuffers], &arguments.extra_map, place.column_of(i), place.row_of(i), loaded);
  }

  // After the product: sums -> bf16 -> buffer -> copy engine, piece by piece.
  __device__ __forceinline__ void finish(const int (&acc)[T::kBlocksM][T::kSums]) {
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
        address[pair] = ptx::shared_address(piece) + swizzled<T>(lane_row, 2 * pair + lane_unit);
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
        ptx::tma_store(&arguments.y_map, place.column_of(i), place.row_of(i), piece);
        ptx::tma_store_commit();
        if constexpr (kExtra != Extra::none) {  // refill the buffer of the piece before this one
          if (i > 0 && i - 1 + T::kBuffers < T::kPieces) {
            ptx::tma_store_wait_read<1>();
            load_extra(i - 1 + T::kBuffers);
          }
        }
      }
    }
    uses += T::kPieces / T::kBuffers;
  }
};

// For tests: the exact sums, straight from the registers.
template <class T>
struct BareSums {
  struct Arguments {
    int* sums;  // (M, N)
  };
  const Arguments& arguments;
  const Walk& walk;
  int lane, row, column;

  __device__ BareSums(const Arguments& arguments, const Walk& walk, uint8_t (*)[T::kPieceBytes], uint64_t*,
                      int lane)
      : arguments(arguments), walk(walk), lane(lane) {}
  __device__ void prefetch(int first_row, int first_column, int) { row = first_row, column = first_column; }
  __device__ __forceinline__ void finish(const int (&acc)[T::kBlocksM][T::kSums]) {
#pragma unroll
    for (int block = 0; block < T::kBlocksM; ++block) {
#pragma unroll
      for (int j = 0; j < T::kTileN / 8; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int m = row + 64 * block + 8 * half + lane / 4, n = column + 8 * j + 2 * (lane % 4);
          if (m < walk.M && n < walk.N) {
            *reinterpret_cast<int2*>(arguments.sums + static_cast<int64_t>(m) * walk.N + n) =
                int2{acc[block][4 * j + 2 * half], acc[block][4 * j + 2 * half + 1]};
          }
        }
      }
    }
  }
};

}  // namespace switchback::sm90
