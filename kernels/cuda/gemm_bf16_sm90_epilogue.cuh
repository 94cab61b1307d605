// gemm_bf16_sm90_epilogue.cuh: from the sums of a bf16 product, in a consumer's registers, to y (and a second
// matrix) in memory: the forms of gemm_bf16.cuh, in the pieces of gemm_sm90_pieces.cuh.
//
// Buffers of a warp: kRing of them take turns with y; an operand is loaded into the buffer in which its piece
// of y will lie, kRing pieces ahead. kSecondRing more take turns with the second matrix.
#pragma once

#include "kernels/cuda/gelu.cuh"
#include "kernels/cuda/gemm_bf16.cuh"
#include "kernels/cuda/gemm_sm90_pieces.cuh"

namespace switchback::sm90 {

using cuda::After;

// Buffers that take turns must divide the pieces of a tile, so that turns continue from tile to tile.
constexpr int largest_divisor(int pieces, int at_most) {
  while (pieces % at_most != 0) --at_most;
  return at_most;
}

// kSecond: there is code for a second matrix (which need not be wanted).   kFresh: gemm_sm90.cuh.
template <class T, After kAfter, Gelu kGelu = Gelu::exact, bool kSecond = kAfter != After::nothing,
          bool kFresh = false>
struct Bf16Epilogue {
  struct Arguments {
    CUtensorMap y_map, operand_map, second_map;
    const __nv_bfloat16* bias;
    bool second;  // wanted
  };
  static constexpr bool kHasOperand = kAfter == After::gelu_backward;
  static constexpr bool kHasSecond = kSecond, kFreshSums = kFresh;
  static constexpr int kRing = largest_divisor(
      T::kPieces, kAfter == After::gelu ? T::kBuffers / 2 : T::kBuffers - (kHasSecond ? 1 : 0));
  static constexpr int kSecondRing = kHasSecond ? largest_divisor(T::kPieces, T::kBuffers - kRing) : 0;

  static constexpr int kSecondBuffers = kHasSecond ? kSecondRing : 1;

  const Arguments& arguments;
  const Walk& walk;
  uint8_t (*pieces)[T::kPieceBytes];  // this warp's buffers
  uint64_t* operand_loaded;
  int lane;
  int uses = 0;  // of each buffer of the ring so far: its parity is that of operand_loaded
  PiecePlaces<T> place;
  ColumnPairs<T> bias;

  __device__ Bf16Epilogue(const Arguments& arguments, const Walk& walk, uint8_t (*pieces)[T::kPieceBytes],
                          uint64_t* loaded, int lane)
      : arguments(arguments), walk(walk), pieces(pieces), operand_loaded(loaded), lane(lane) {}

  // Before the product: everything the epilogue will need from memory is on its way.
  __device__ __forceinline__ void prefetch(int row, int column, int) {
    place = {row, column};
    if constexpr (kAfter != After::gelu_backward) bias.load(arguments.bias, 0, column, walk.N, lane);
    if constexpr (kHasOperand) {
      if (lane == 0) {
        ptx::tma_store_wait_read<0>();  // the last tile's stores have left the buffers
#pragma unroll
        for (int i = 0; i < kRing; ++i) load_operand(i);
      }
    }
  }

  __device__ __forceinline__ void load_operand(int i) {
    uint64_t* loaded = &operand_loaded[i % kRing];
    ptx::mbarrier_arrive_and_expect(loaded, T::kPieceBytes);
    ptx::tma_load(pieces[i % kRing], &arguments.operand_map, place.column_of(i), place.row_of(i), loaded);
  }

  // Waits until this warp may write piece i, and until its operand has come.
  __device__ __forceinline__ void await_buffers(int i) {
    if constexpr (kHasOperand)
      ptx::mbarrier_wait(&operand_loaded[i % kRing], (uses + i / kRing) & 1, "epilogue", i);
    constexpr int kOldest = kHasOperand                         ? kSecondRing
                            : kHasSecond && kSecondRing < kRing ? kSecondRing
                                                                : kRing;
    if constexpr (kOldest > 0) {
      if (lane == 0 && (!kHasOperand || arguments.second)) ptx::tma_store_wait_read<kOldest - 1>();
      __syncwarp();
    }
  }

  // Eight sums of a lane (two groups of columns, two halves of the rows) to what is written; both packed.
  __device__ __forceinline__ void transform(uint32_t (&y)[4], uint32_t (&second)[4], float (&r)[8],
                                            const uint32_t (&operand)[4]) const {
    float at[8], gelu[8];
    if constexpr (kAfter == After::gelu) {
#pragma unroll
      for (int q = 0; q < 4; ++q) second[q] = pack_bf16(r[2 * q], r[2 * q + 1]);
    }
    if constexpr (kAfter != After::nothing) {
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const float2 both = unpack_bf16(kAfter == After::gelu ? second[q] : operand[q]);
        at[2 * q] = both.x, at[2 * q + 1] = both.y;
      }
    }
    if constexpr (kAfter == After::gelu) {
      cuda::gelu<kGelu>(r, at);
    } else if constexpr (kAfter == After::gelu_backward) {
      cuda::gelu_and_times_slope<kGelu>(gelu, r, at);
#pragma unroll
      for (int q = 0; q < 4 && kHasSecond; ++q) second[q] = pack_bf16(gelu[2 * q], gelu[2 * q + 1]);
    }
#pragma unroll
    for (int q = 0; q < 4; ++q) y[q] = pack_bf16(r[2 * q], r[2 * q + 1]);
  }

  // After the product: sums -> bf16 -> buffer -> copy engine, piece by piece.
  __device__ __forceinline__ void finish(const float (&acc)[T::kBlocksM][T::kSums]) {
    // The row and unit whose address this lane gives to ldmatrix and stmatrix (matrix_fragments.cuh):
    // matrices 0 and 1 are rows 0-7 and 8-15 of one column group, matrices 2 and 3 of the next.
    const uint32_t first_offset = swizzled<T>(lane % 16, lane / 16);
    constexpr int kPairs = T::kChunk / 16;       // of column groups
    constexpr int kAhead = kFresh ? 1 : kPairs;  // of the pairs' operands
#pragma unroll
    for (int i = 0; i < T::kPieces; ++i) {
      const int block = i / T::kChunks, first_group = i % T::kChunks * (T::kChunk / 8);
      uint8_t* y_piece = pieces[i % kRing];
      uint8_t* second_piece = kHasSecond ? pieces[kRing + i % kSecondBuffers] : nullptr;
      await_buffers(i);
      uint32_t operand[kPairs][4] = {};
      const auto load = [&](int pair) {
        ptx::load_matrices(operand[pair], ptx::shared_address(y_piece) + (first_offset ^ pair * 32));
      };
      if constexpr (kHasOperand) {
#pragma unroll
        for (int pair = 0; pair < kAhead; ++pair) load(pair);
      }
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) {
        const uint32_t offset = first_offset ^ pair * 32;
        if (kHasOperand && pair + kAhead < kPairs) load(pair + kAhead);
        float r[8];
#pragma unroll
        for (int group = 0; group < 2; ++group) {
          const int j = first_group + 2 * pair + group;
#pragma unroll
          for (int q = 0; q < 4; ++q) r[4 * group + q] = acc[block][4 * j + q];
          if constexpr (kAfter != After::gelu_backward) {
            const float2 b = bias.of_group(j, lane);
#pragma unroll
            for (int half = 0; half < 2; ++half)
              r[4 * group + 2 * half] += b.x, r[4 * group + 2 * half + 1] += b.y;
          }
        }
        uint32_t y[4], second[4];
        transform(y, second, r, operand[pair]);
        ptx::store_matrices(ptx::shared_address(y_piece) + offset, y);
        if constexpr (kHasSecond)  // wanted or not: a branch would keep the compiler from mixing pairs
          ptx::store_matrices(ptx::shared_address(second_piece) + offset, second);
      }
      ptx::fence_async_proxy();
      __syncwarp();
      if (lane == 0) {
        ptx::tma_store(&arguments.y_map, place.column_of(i), place.row_of(i), y_piece);
        if (kHasSecond && arguments.second)
          ptx::tma_store(&arguments.second_map, place.column_of(i), place.row_of(i), second_piece);
        ptx::tma_store_commit();
        if constexpr (kHasOperand) {  // refill the buffer of the piece before this one
          if (i > 0 && i - 1 + kRing < T::kPieces) {
            ptx::tma_store_wait_read<1>();
            load_operand(i - 1 + kRing);
          }
        }
      }
    }
    uses += T::kPieces / kRing;
  }
};

}  // namespace switchback::sm90
