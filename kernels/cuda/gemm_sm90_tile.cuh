// gemm_sm90_tile.cuh: the shapes of gemm_sm90: what a block computes, what lies in its shared memory, in
// which order tiles are walked, and how a place in the ring of stages is counted.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/ptx/wgmma.cuh"

namespace switchback::sm90 {

enum class Schedule { staggered, ping_pong };

// Which index of an operand runs along its rows in memory: K, or M (of x) or N (of w). The tensor cores read
// 8-bit operands only along K; bf16 they transpose on the way.
using ptx::Major;

constexpr int kRowBytes = 128;  // of one row of an operand in shared memory: the width of the swizzle

// Element: int8_t (sums in s32) or __nv_bfloat16 (sums in f32).
// kTileM x kTileN: the tile of a block (staggered) or of each consumer (ping_pong).
// kBuffers: pieces of y (or of an operand of the epilogue, on its way in) that a consumer warp may have under
// way.
template <class Element_, int kTileM_, int kTileN_, int kStages_, int kBuffers_, Schedule kSchedule_,
          Major kMajorW_ = Major::k, Major kMajorX_ = Major::k>
struct Tile {
  using Element = Element_;
  using Sum = std::conditional_t<std::is_same_v<Element, int8_t>, int, float>;
  static constexpr int kTileM = kTileM_, kTileN = kTileN_, kStages = kStages_, kBuffers = kBuffers_;
  static constexpr Schedule kSchedule = kSchedule_;
  static constexpr Major kMajorX = kMajorX_, kMajorW = kMajorW_;

  static constexpr int kBlockK = kRowBytes / sizeof(Element);  // of K per stage
  static constexpr int kThreads = 384;
  static constexpr int kClusterSize = 2;
  static constexpr int kConsumerM = kSchedule == Schedule::staggered ? kTileM / 2 : kTileM;
  static constexpr int kBlocksM = kConsumerM / 64;  // wgmma has 64 rows
  static constexpr int kSums = kTileN / 2;          // of each block of 64 rows, in every thread
  static constexpr int kChunk =
      kTileN % 64 == 0 ? 64 : 32;  // columns of one piece of y: as wide as a swizzle
  static constexpr int kChunks = kTileN / kChunk;
  static constexpr int kPieces = kBlocksM * kChunks;  // pieces of 16 x kChunk per warp and tile
  static constexpr int kPieceBytes = 16 * kChunk * 2;
  static constexpr int kColumnRegisters = (kTileN + 63) / 64;
  static constexpr int kStageBytes = (kTileM + kTileN) * kRowBytes;
  // Warps that must release a stage before it is loaded again: w is multicast, so those of both blocks.
  static constexpr int kReleases = (kSchedule == Schedule::staggered ? 8 : 4) * kClusterSize;

  static_assert(kConsumerM % 64 == 0 && kTileN % 32 == 0);
  static_assert(kBlocksM * kSums <= 192, "accumulators must fit in registers");
  static_assert(kMajorW == Major::k || (sizeof(Element) == 2 && kTileN % 64 == 0));
  static_assert(kMajorX == Major::k || sizeof(Element) == 2);
};

template <class T>
struct SharedMemory {
  alignas(1024) uint8_t x[T::kStages][T::kTileM * kRowBytes];
  alignas(1024) uint8_t w[T::kStages][T::kTileN * kRowBytes];
  alignas(1024) uint8_t pieces[8][T::kBuffers][T::kPieceBytes];  // per consumer warp
  uint64_t full[T::kStages], empty[T::kStages];
  uint64_t piece_loaded[8][T::kBuffers];
};

struct Walk {
  int M, N, K;
  int row_units, column_units;  // pairs of tiles, one above the other; tiles
  int group;                    // column units walked together
  int stagger;                  // stages
  int k_blocks;                 // stages of K
  int whole;                    // tiles that are one unit each; of the others
  int parts, part_blocks;       // a unit is one of `parts` parts of K, of part_blocks stages (the last: less)

  __host__ __device__ int tiles() const { return row_units * column_units; }
  __host__ __device__ int units() const { return whole + (tiles() - whole) * parts; }
};

// Whether an epilogue can do with parts of a tile's sums. For the others all tiles are whole, and the kernel
// has no registers to spare for the question.
template <class Epilogue>
constexpr bool takes_parts = requires { typename Epilogue::TakesParts; };

// The list of units: tiles in bands of `group` column units, walked row by row, so that blocks running at the
// same time share rows of x and the band's w. A band is as wide as L2 allows, for x is read from memory once
// per band. Behind the whole tiles come the parts of the others: the first part of each, the second, ...
struct TilePosition {
  int m, n, k;   // first row, column and k
  int k_blocks;  // stages
  int part;      // which of all parts, tile by tile; -1: a whole tile
};
template <class T, bool kParts>
__host__ __device__ __forceinline__ TilePosition tile_position(const Walk& walk, int unit, int rank) {
  int tile = unit, part = -1, k = 0, k_blocks = walk.k_blocks;
  if (kParts && unit >= walk.whole) {
    const int others = walk.tiles() - walk.whole, of_tile = (unit - walk.whole) / others;
    const int other = unit - walk.whole - of_tile * others;
    tile = walk.whole + other, part = other * walk.parts + of_tile;
    k = of_tile * walk.part_blocks;
    k_blocks = walk.part_blocks < walk.k_blocks - k ? walk.part_blocks : walk.k_blocks - k;
  }
  const int first_column = tile / (walk.group * walk.row_units) * walk.group;
  const int columns = walk.column_units - first_column, width = walk.group < columns ? walk.group : columns;
  const int rest = tile - first_column * walk.row_units;
  const int row = 2 * (rest / width) + rank, column = first_column + rest % width;
  return {row * T::kTileM, column * T::kTileN, k * T::kBlockK, k_blocks, part};
}

// A place in the ring of stages, and the parity of the barrier phase that belongs to it.
template <class T>
struct RingPosition {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void advance() {
    if (++stage == T::kStages) stage = 0, parity ^= 1;
  }
  __device__ void advance(int count) {
    const int sum = stage + count;
    parity ^= (sum / T::kStages) & 1;
    stage = sum % T::kStages;
  }
};

}  // namespace switchback::sm90
