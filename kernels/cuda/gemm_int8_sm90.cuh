// gemm_int8_sm90.cuh: the int8 matrix product on Hopper.   y (M, N) = epilogue(x (M, K) w (N, K)ᵀ), gemm_int8.cuh.
//
// The tensor cores of one multiprocessor do 4096 multiply-adds per clock in int8. Everything here serves one
// aim: that they never wait, and that they get their operands for little energy, because under full load this chip
// lowers its clock to stay within its power. The roles, all in one block of 384 threads:
//
//   warpgroup 0, "producer"   one thread asks the copy engine for 128-byte wide pieces of x and w, `kStages` ahead;
//                             the ring of stages is guarded by two barriers each: full[s] (the bytes have come) and
//                             empty[s] (all readers have finished)
//   warpgroups 1 and 2, "consumers"   multiply (wgmma, accumulators in registers), then scale, round, and hand
//                             16-row pieces of y to the copy engine; no consumer ever computes a global address of y
//
// Two schedules for the consumers (Schedule):
//   staggered   both work on one kTileM x kTileN tile, each on half of its rows, so w is read once for both.
//               Consumer 1 starts `stagger` stages late and stays late, because the tensor cores serve both equally:
//               when consumer 0 leaves for its epilogue, consumer 1 still has `stagger` stages of work and gets
//               the tensor cores alone, and the other way round. The epilogue costs no tensor time.
//   ping_pong   each works on tiles of its own, and they take turns: one multiplies, the other runs its epilogue.
//               Smaller tiles, more traffic, but the overlap is complete whatever the length of the epilogue.
//
// Blocks are persistent (one per multiprocessor, each walks a list of tiles) and may come in clusters of two (Pair)
// that work on neighbouring tiles and share the operand both need: each loads half of it and multicasts to both.
//
// Numbers for kTile 128 x 256, per stage of 128 of K: 48 KiB come from L2 (32 with a pair) while the tensor cores work
// 1024 clocks, so 48 (32) bytes per clock; L2 delivers about 45 to each multiprocessor when all ask at once.
#pragma once

#include <algorithm>

#include "kernels/cuda/cuda_check.cuh"
#include "kernels/cuda/gemm_int8.cuh"
#include "kernels/cuda/ptx/cluster.cuh"
#include "kernels/cuda/ptx/dependent_launch.cuh"
#include "kernels/cuda/ptx/matrix_fragments.cuh"
#include "kernels/cuda/ptx/mbarrier.cuh"
#include "kernels/cuda/ptx/named_barrier.cuh"
#include "kernels/cuda/ptx/registers.cuh"
#include "kernels/cuda/ptx/tensor_map.cuh"
#include "kernels/cuda/ptx/tma.cuh"
#include "kernels/cuda/ptx/wgmma.cuh"

namespace switchback::sm90 {

enum class Schedule { staggered, ping_pong };
enum class Pair {
  none,
  rows,     // the two blocks take neighbouring row tiles of the same columns and share w
  columns,  // the two blocks take neighbouring column tiles of the same rows and share x
};
enum class Output {
  bf16,          // the epilogue of gemm_int8.cuh
  accumulators,  // the bare s32 sums, for tests of exactness
};

// kTileM x kTileN: the tile of a block (staggered) or of each consumer (ping_pong).
// kBuffers: pieces of y (or of the residual, on its way in) that a consumer warp may have under way.
template <int kTileM_, int kTileN_, int kStages_, int kBuffers_, Schedule kSchedule_, Pair kPair_>
struct Tile {
  static constexpr int kTileM = kTileM_, kTileN = kTileN_, kStages = kStages_, kBuffers = kBuffers_;
  static constexpr Schedule kSchedule = kSchedule_;
  static constexpr Pair kPair = kPair_;

  static constexpr int kBlockK = 128;  // bytes of K per stage: the width of the swizzle
  static constexpr int kThreads = 384;
  static constexpr int kClusterSize = kPair == Pair::none ? 1 : 2;
  static constexpr int kConsumerM = kSchedule == Schedule::staggered ? kTileM / 2 : kTileM;
  static constexpr int kBlocksM = kConsumerM / 64;  // wgmma has 64 rows
  static constexpr int kChunk = kTileN % 64 == 0 ? 64 : 32;  // columns of one piece of y: as wide as a swizzle
  static constexpr int kChunks = kTileN / kChunk;
  static constexpr int kPieces = kBlocksM * kChunks;  // pieces of 16 x kChunk per warp and tile
  static constexpr int kColumnRegisters = (kTileN + 63) / 64;
  static constexpr int kStageBytes = (kTileM + kTileN) * kBlockK;
  // Barriers: warps that must release a stage before it is loaded again, in all blocks it is multicast to.
  static constexpr int kReleases = (kSchedule == Schedule::staggered ? 8 : 4) * kClusterSize;

  static_assert(kConsumerM % 64 == 0 && kTileN % 32 == 0 && kPieces % kBuffers == 0);
  static_assert(kBlocksM * kTileN / 2 <= 192, "accumulators must fit in registers");
};

template <class T>
struct SharedMemory {
  alignas(1024) int8_t x[T::kStages][T::kTileM * T::kBlockK];
  alignas(1024) int8_t w[T::kStages][T::kTileN * T::kBlockK];
  alignas(1024) uint8_t pieces[8][T::kBuffers][16 * T::kChunk * 2];  // per consumer warp
  uint64_t full[T::kStages], empty[T::kStages];
  uint64_t extra_loaded[8][T::kBuffers];
};

struct Parameters {
  int M, N, K;
  int row_units, column_units;  // tiles, or pairs of tiles along the direction of the pair
  int group;                    // column units walked together
  int stagger;                  // stages
  const float* row_scale;
  const float* weight_scale;
  const __nv_bfloat16* bias;
  const __nv_bfloat16* gamma;
  int* accumulators;
};

// The list of tiles: bands of `group` column units, walked row by row, so that blocks running at the same time share rows
// of x and the band's w. A band is as wide as L2 allows, for x is read from memory once per band.
struct TilePosition {
  int m, n;  // first row and column
};
template <class T>
__device__ __forceinline__ TilePosition tile_position(const Parameters& p, int unit, int rank) {
  const int band = unit / (p.group * p.row_units);
  const int first_column = band * p.group;
  const int width = min(p.group, p.column_units - first_column);
  const int rest = unit - first_column * p.row_units;
  int row = rest / width, column = first_column + rest % width;
  if (T::kPair == Pair::rows) row = 2 * row + rank;
  if (T::kPair == Pair::columns) column = 2 * column + rank;
  return {row * T::kTileM, column * T::kTileN};
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

// ---- producer: one thread ----------------------------------------------------------------------------------------------

template <class T>
__device__ __forceinline__ void produce(SharedMemory<T>& shared, const CUtensorMap& x_map, const CUtensorMap& w_map,
                                        const Parameters& p, int first_unit, int units, int unit_step, int rank) {
  constexpr uint16_t kBoth = 0b11;
  RingPosition<T> at;
  for (int unit = first_unit; unit < units; unit += unit_step) {
    const TilePosition tile = tile_position<T>(p, unit, rank);
    for (int k = 0; k < p.K; k += T::kBlockK) {
      ptx::mbarrier_wait(&shared.empty[at.stage], at.parity ^ 1, "producer", at.stage);
      uint64_t* full = &shared.full[at.stage];
      // All bytes that will land in this block's stage, the other block's multicast included.
      ptx::mbarrier_arrive_and_expect(full, T::kStageBytes);
      int8_t* x = shared.x[at.stage];
      int8_t* w = shared.w[at.stage];
      if constexpr (T::kPair == Pair::columns) {
        const int half = rank * T::kTileM / 2;
        ptx::tma_load_multicast(x + half * T::kBlockK, &x_map, k, tile.m + half, full, kBoth);
      } else {
        ptx::tma_load(x, &x_map, k, tile.m, full);
      }
      if constexpr (T::kPair == Pair::rows) {
        const int half = rank * T::kTileN / 2;
        ptx::tma_load_multicast(w + half * T::kBlockK, &w_map, k, tile.n + half, full, kBoth);
      } else {
        ptx::tma_load(w, &w_map, k, tile.n, full);
      }
      at.advance();
    }
  }
}

// ---- consumers: the product -----------------------------------------------------------------------------------------------

// This warp no longer reads the stage: tell the producers that write to it.
template <class T>
__device__ __forceinline__ void release(SharedMemory<T>& shared, int stage, int lane) {
  if constexpr (T::kClusterSize == 1) {
    if (lane == 0) ptx::mbarrier_arrive(&shared.empty[stage]);
  } else {
    if (lane < T::kClusterSize) ptx::mbarrier_arrive_in_cluster(&shared.empty[stage], lane);
  }
}

// acc = x rows [first_row, first_row + kConsumerM) of the tile times all of its w. One group of products stays in
// flight while the next stage is waited for. after_issue(k_block) runs when a stage's products are on their way.
template <class T, class AfterIssue>
__device__ __forceinline__ void multiply(int (&acc)[T::kBlocksM][T::kTileN / 2], SharedMemory<T>& shared,
                                         RingPosition<T>& at, int k_blocks, int first_row, int lane,
                                         const char* role, const AfterIssue& after_issue) {
  int previous = 0;
  for (int k_block = 0; k_block < k_blocks; ++k_block) {
    ptx::mbarrier_wait(&shared.full[at.stage], at.parity, role, at.stage);
    const uint64_t x = ptx::wgmma_descriptor(shared.x[at.stage] + first_row * T::kBlockK);
    const uint64_t w = ptx::wgmma_descriptor(shared.w[at.stage]);
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < T::kBlockK; k += 32) {
#pragma unroll
      for (int block = 0; block < T::kBlocksM; ++block) {
        ptx::wgmma_s8(acc[block], ptx::wgmma_advance(x, block * 64 * T::kBlockK + k), ptx::wgmma_advance(w, k),
                      k_block > 0 || k > 0);
      }
    }
    ptx::wgmma_commit();
    after_issue(k_block);
    ptx::wgmma_wait<1>();
    if (k_block > 0) release(shared, previous, lane);
    previous = at.stage;
    at.advance();
  }
  ptx::wgmma_wait<0>();
#pragma unroll
  for (int block = 0; block < T::kBlocksM; ++block) ptx::wgmma_results(acc[block]);
  release(shared, previous, lane);
}

// ---- consumers: the epilogue ---------------------------------------------------------------------------------------------

// Values that belong to columns (bias, gamma, column scale) are the same for all rows. A warp keeps them spread over
// its lanes: lane l has columns 64 t + 2 l, +1 of the tile in register t, read from memory once per tile, long before
// they are needed. Column group j of 8 then finds the pair of lane l's columns, 2 (l mod 4), in lane 4 (j mod 8) + l mod 4.
template <class T>
struct ColumnPairs {
  uint32_t pair[T::kColumnRegisters];  // two bf16

  __device__ void load(const __nv_bfloat16* values, uint32_t absent, int first_column, int columns, int lane) {
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

  // Piece i is rows 64 (i / kChunks) + 0..15, columns kChunk (i mod kChunks) + 0..kChunk-1 from (row, column).
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
  __device__ __forceinline__ void finish(const int (&acc)[T::kBlocksM][T::kTileN / 2], const CUtensorMap& y_map,
                                         const CUtensorMap& extra_map) {
    // The row and unit whose address this lane gives to ldmatrix and stmatrix (matrix_fragments.cuh): matrices 0 and 1
    // are rows 0-7 and 8-15 of one column group, matrices 2 and 3 of the next.
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
          result[q] = pack_bf16(
              gemm_int8_element<kExtra>(acc[block][4 * j + 2 * half], scale.x, b.x, e.x, g.x),
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
__device__ __forceinline__ void write_accumulators(const int (&acc)[T::kBlocksM][T::kTileN / 2], const Parameters& p,
                                                   int row, int column, int lane) {
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

// ---- the kernel -----------------------------------------------------------------------------------------------------------

template <class T, Extra kExtra, bool kColumnScale, Output kOutput>
__global__ void __launch_bounds__(T::kThreads, 1)
    gemm_int8_kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map,
                     const __grid_constant__ CUtensorMap y_map, const __grid_constant__ CUtensorMap extra_map,
                     const Parameters p) {
  extern __shared__ __align__(1024) uint8_t raw[];
  SharedMemory<T>& shared = *reinterpret_cast<SharedMemory<T>*>(raw);
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0);  // uniform, and the compiler knows it
  const int lane = threadIdx.x % 32;
  const int rank = T::kClusterSize == 1 ? 0 : static_cast<int>(ptx::cluster_block_rank());

  if (threadIdx.x == 0) {
    for (int s = 0; s < T::kStages; ++s) {
      ptx::mbarrier_init(&shared.full[s], 1);
      ptx::mbarrier_init(&shared.empty[s], T::kReleases);
    }
    for (int w = 0; w < 8; ++w) {
      for (int b = 0; b < T::kBuffers; ++b) ptx::mbarrier_init(&shared.extra_loaded[w][b], 1);
    }
    ptx::mbarrier_init_fence();
    ptx::tma_prefetch_map(&x_map);
    ptx::tma_prefetch_map(&w_map);
    ptx::tma_prefetch_map(&y_map);
  }
  if constexpr (T::kClusterSize > 1) ptx::cluster_sync();
  else __syncthreads();
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();

  const int units = p.row_units * p.column_units;
  const int first_unit = blockIdx.x / T::kClusterSize, unit_step = gridDim.x / T::kClusterSize;
  const int k_blocks = (p.K + T::kBlockK - 1) / T::kBlockK;

  if (warp < 4) {  // ---- producer
    ptx::give_back_registers<40>();
    if (threadIdx.x == 0) produce<T>(shared, x_map, w_map, p, first_unit, units, unit_step, rank);
    __syncwarp();
  } else {  // ---- consumers
    ptx::take_registers<232>();
    const int consumer = warp / 4 - 1;
    const int warp_row = warp % 4 * 16;
    RingPosition<T> at;
    Epilogue<T, kExtra, kColumnScale> epilogue;
    epilogue.pieces = shared.pieces[warp - 4];
    epilogue.extra_loaded = shared.extra_loaded[warp - 4];
    epilogue.lane = lane;

    if constexpr (T::kSchedule == Schedule::staggered) {
      const int first_row = consumer * T::kConsumerM;
      bool hold = p.stagger > 0 && first_unit < units;  // only once: the distance then keeps itself
      for (int unit = first_unit; unit < units; unit += unit_step) {
        const TilePosition tile = tile_position<T>(p, unit, rank);
        if (kOutput == Output::bf16) epilogue.prefetch(p, extra_map, tile.m + first_row + warp_row, tile.n);
        if (hold && consumer == 1) ptx::named_barrier_sync<1>(256);
        const int last_held = min(p.stagger, k_blocks) - 1;
        int acc[T::kBlocksM][T::kTileN / 2];
        multiply<T>(acc, shared, at, k_blocks, first_row, lane, "consumer", [&](int k_block) {
          if (hold && consumer == 0 && k_block == last_held) ptx::named_barrier_arrive<1>(256);
        });
        hold = false;
        if constexpr (kOutput == Output::bf16) epilogue.finish(acc, y_map, extra_map);
        else write_accumulators<T>(acc, p, tile.m + first_row + warp_row, tile.n, lane);
      }
    } else {
      // Turns: barrier 1 is "consumer 0 may multiply", barrier 2 the same for consumer 1.
      if (consumer == 1) {
        ptx::named_barrier_arrive<1>(256);
        at.advance(k_blocks);
      }
      for (int unit = first_unit + consumer * unit_step; unit < units; unit += 2 * unit_step) {
        const TilePosition tile = tile_position<T>(p, unit, rank);
        if (kOutput == Output::bf16) epilogue.prefetch(p, extra_map, tile.m + warp_row, tile.n);
        if (consumer == 0) ptx::named_barrier_sync<1>(256);
        else ptx::named_barrier_sync<2>(256);
        int acc[T::kBlocksM][T::kTileN / 2];
        multiply<T>(acc, shared, at, k_blocks, 0, lane, "consumer", [&](int k_block) {
          if (k_block == k_blocks - 1) {
            if (consumer == 0) ptx::named_barrier_arrive<2>(256);
            else ptx::named_barrier_arrive<1>(256);
          }
        });
        at.advance(k_blocks);  // the other consumer's tile
        if constexpr (kOutput == Output::bf16) epilogue.finish(acc, y_map, extra_map);
        else write_accumulators<T>(acc, p, tile.m + warp_row, tile.n, lane);
      }
    }
    if (lane == 0) ptx::tma_store_wait_read<0>();  // shared memory must outlive its readers
    __syncwarp();
  }
  // A block must not go while the other may still arrive at its barriers.
  if constexpr (T::kClusterSize > 1) ptx::cluster_sync();
}

// ---- launch ---------------------------------------------------------------------------------------------------------------

inline int multiprocessor_count() {
  static const int count = [] {
    int device, n;
    CUDA_CHECK(cudaGetDevice(&device));
    CUDA_CHECK(cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, device));
    return n;
  }();
  return count;
}

struct LaunchOptions {
  int64_t band_bytes = 16 << 20;  // of w that the blocks keep returning to: a third of L2
  int stagger = 3;
  bool overlap_previous = true;  // start while the stream's previous kernel ends (dependent_launch.cuh)
};

template <class T, Extra kExtra, bool kColumnScale, Output kOutput = Output::bf16>
void launch(const GemmInt8& a, const LaunchOptions& options, cudaStream_t stream, int* accumulators = nullptr) {
  const int M = static_cast<int>(a.x.rows()), N = static_cast<int>(a.w.rows()), K = static_cast<int>(a.x.cols());
  if (M == 0 || N == 0) return;
  constexpr size_t kSharedBytes = sizeof(SharedMemory<T>);
  static_assert(kSharedBytes <= 232448, "a block has 227 KiB of shared memory");
  auto* kernel = gemm_int8_kernel<T, kExtra, kColumnScale, kOutput>;
  static const bool once = [&] {
    CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
    return true;
  }();
  (void)once;

  const auto ceil_div = [](int n, int d) { return (n + d - 1) / d; };
  Parameters p;
  p.M = M, p.N = N, p.K = K;
  p.row_units = ceil_div(M, T::kTileM * (T::kPair == Pair::rows ? 2 : 1));
  p.column_units = ceil_div(N, T::kTileN * (T::kPair == Pair::columns ? 2 : 1));
  const int64_t unit_bytes = int64_t{K} * T::kTileN * (T::kPair == Pair::columns ? 2 : 1);
  p.group = static_cast<int>(std::clamp<int64_t>(options.band_bytes / unit_bytes, 1, p.column_units));
  p.stagger = options.stagger < T::kStages ? options.stagger : T::kStages - 1;
  p.row_scale = a.row_scale.as<float>();
  p.weight_scale = a.weight_scale.as<float>();
  p.bias = static_cast<const __nv_bfloat16*>(a.bias.data);
  p.gamma = static_cast<const __nv_bfloat16*>(a.gamma.data);
  p.accumulators = accumulators;

  using ptx::Swizzle;
  constexpr Swizzle kPieceSwizzle = T::kChunk == 64 ? Swizzle::bytes_128 : Swizzle::bytes_64;
  const CUtensorMap x_map = ptx::make_tensor_map(
      a.x.data, M, K, 1, T::kTileM / (T::kPair == Pair::columns ? 2 : 1), T::kBlockK, Swizzle::bytes_128);
  const CUtensorMap w_map = ptx::make_tensor_map(
      a.w.data, N, K, 1, T::kTileN / (T::kPair == Pair::rows ? 2 : 1), T::kBlockK, Swizzle::bytes_128);
  const CUtensorMap y_map = ptx::make_tensor_map(a.y.data, M, N, 2, 16, T::kChunk, kPieceSwizzle);
  const CUtensorMap extra_map =
      kExtra == Extra::none ? y_map : ptx::make_tensor_map(a.extra.data, M, N, 2, 16, T::kChunk, kPieceSwizzle);

  cudaLaunchConfig_t config = {};
  const int units = p.row_units * p.column_units;
  const int clusters = multiprocessor_count() / T::kClusterSize;
  config.gridDim = (units < clusters ? units : clusters) * T::kClusterSize;
  config.blockDim = T::kThreads;
  config.dynamicSmemBytes = kSharedBytes;
  config.stream = stream;
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {T::kClusterSize, 1, 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = options.overlap_previous;
  config.attrs = attributes;
  config.numAttrs = 2;
  CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, x_map, w_map, y_map, extra_map, p));
}

}  // namespace switchback::sm90
