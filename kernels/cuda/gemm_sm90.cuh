// gemm_sm90.cuh: the matrix product on Hopper.   y (M, N) = epilogue(x (M, K) wᵀ), for int8 and for bf16.
//
// The tensor cores of one multiprocessor do 4096 multiply-adds per clock in int8, 2048 in bf16. Everything
// here serves one aim: that they never wait, and that they get their operands for little energy, because
// under full load this chip lowers its clock to stay within its power. The roles, all in one block of 384
// threads:
//
//   producer    warpgroup 0: one thread asks the copy engine for 128-byte wide pieces of x and w, `kStages`
//               ahead; the ring of stages is guarded by two barriers each: full[s] (the bytes have come) and
//               empty[s] (all readers have finished)
//   consumers   warpgroups 1 and 2: multiply (wgmma, accumulators in registers), then hand the sums to the
//               epilogue, which rounds them and gives 16-row pieces of y to the copy engine; no consumer ever
//               computes a global address of y
//
// Two schedules for the consumers (Schedule):
//
//   staggered   Both work on one kTileM x kTileN tile, each on half of its rows, so w is read once for both.
//               Consumer 1 starts `stagger` stages late and stays late, because the tensor cores serve both
//               equally: when consumer 0 leaves for its epilogue, consumer 1 still has `stagger` stages of
//               work and gets the tensor cores alone, and the other way round. The epilogue costs no tensor
//               time, but the ring must hold a stage for the later of the two.
//   ping_pong   Each works on tiles of its own, and they take turns: one multiplies, the other runs its
//               epilogue. Smaller tiles, more traffic, but nothing is held back: the better one for short K.
//
// Blocks are persistent (one per multiprocessor, each walks a list of tiles) and come in clusters of two that
// work on two tiles above each other: both need the same rows of w, so each loads half of them and multicasts
// to both.
//
// Numbers for a tile of 128 x 160, per stage of 128 bytes of K: 36 KiB would come from L2 (26 with the pair)
// while the tensor cores work 640 clocks, so 58 (42) bytes per clock; L2 delivers about 45 to each
// multiprocessor when all ask at once.
//
// gemm_sm90_tile.cuh: shapes, shared memory, order of tiles.   gemm_sm90_launch.cuh: the host's side.
//
// An Epilogue is what a consumer warp does with its sums. It has
//   Arguments                                 what the host passes to it (tensor maps included)
//   Epilogue(arguments, walk, pieces, piece_loaded, lane)
//   prefetch(row, column, part)               before the product: where the warp's first piece lies
//   finish(sums)                              after it: float or int [kBlocksM][kSums], as wgmma leaves them
// and may have
//   kFreshSums = true                         its own code for a tile's first stage: see multiply
//   TakesParts = void                         tiles of which a unit is a part of K (Walk)
//   prepare(buffer)                           static: once, by all threads: writes the matrix of ones
//   wants_row_sums(), finish_row_sums(sums)   Σ_k x[m, k] on the way (staggered): a product with eight
//                                             columns of ones (8 x 64, bf16, in the first KiB of the
//                                             buffers); float [kBlocksM][4], the first of each pair counts
#pragma once

#include "kernels/cuda/gemm_sm90_tile.cuh"
#include "kernels/cuda/ptx/cluster.cuh"
#include "kernels/cuda/ptx/dependent_launch.cuh"
#include "kernels/cuda/ptx/mbarrier.cuh"
#include "kernels/cuda/ptx/named_barrier.cuh"
#include "kernels/cuda/ptx/registers.cuh"
#include "kernels/cuda/ptx/tma.cuh"
#include "kernels/cuda/ptx/wgmma.cuh"

namespace switchback::sm90 {

// ---- producer: one thread ----------------------------------------------------------------

// Both blocks need all of w: each loads half of it for both.
template <class T>
__device__ __forceinline__ void load_w(uint8_t* w, const CUtensorMap& w_map, int k, int n, int rank,
                                       uint64_t* full) {
  if constexpr (T::kMajorW == Major::k) {  // half of the tile's rows
    const int half = rank * T::kTileN / 2;
    ptx::tma_load_multicast(w + half * kRowBytes, &w_map, k, n + half, full, 0b11);
  } else {  // bands of 64 columns, one after the other; of each, half of the stage's rows
    const int half = rank * T::kBlockK / 2;
#pragma unroll
    for (int band = 0; band < T::kTileN / 64; ++band) {
      ptx::tma_load_multicast(w + (band * T::kBlockK + half) * kRowBytes, &w_map, n + 64 * band, k + half,
                              full, 0b11);
    }
  }
}

template <class T>
__device__ __forceinline__ void load_x(uint8_t* x, const CUtensorMap& x_map, int k, int m, uint64_t* full) {
  if constexpr (T::kMajorX == Major::k) {
    ptx::tma_load(x, &x_map, k, m, full);
  } else {
#pragma unroll
    for (int band = 0; band < T::kTileM / 64; ++band)
      ptx::tma_load(x + band * T::kBlockK * kRowBytes, &x_map, m + 64 * band, k, full);
  }
}

template <class T, bool kParts>
__device__ __forceinline__ void produce(SharedMemory<T>& shared, const CUtensorMap& x_map,
                                        const CUtensorMap& w_map, const Walk& walk, int first_unit, int units,
                                        int unit_step, int rank) {
  RingPosition<T> at;
  for (int unit = first_unit; unit < units; unit += unit_step) {
    const TilePosition tile = tile_position<T, kParts>(walk, unit, rank);
    for (int k_block = 0; k_block < tile.k_blocks; ++k_block) {
      const int k = tile.k + k_block * T::kBlockK;
      ptx::mbarrier_wait(&shared.empty[at.stage], at.parity ^ 1, "producer", at.stage);
      uint64_t* full = &shared.full[at.stage];
      // All bytes that will land in this block's stage, the other block's multicast included.
      ptx::mbarrier_arrive_and_expect(full, T::kStageBytes);
      load_x<T>(shared.x[at.stage], x_map, k, tile.m, full);
      load_w<T>(shared.w[at.stage], w_map, k, tile.n, rank, full);
      at.advance();
    }
  }
}

// ---- consumers: the product ----------------------------------------------------------------

// This warp no longer reads the stage: tell the producers that write to it, this block's and the other's.
template <class T>
__device__ __forceinline__ void release(SharedMemory<T>& shared, int stage, int lane, int rank) {
  if (lane < T::kClusterSize) ptx::mbarrier_arrive_in_cluster(&shared.empty[stage], rank ^ lane);
}

// From a step of 32 bytes of K (16 of bf16) to the next, within a stage.
__host__ __device__ constexpr int step_bytes(Major major) { return major == Major::k ? 32 : 16 * kRowBytes; }

// acc (64, kTileN) += x (64 rows, 32 bytes of K) times the same K of w.
template <class T>
__device__ __forceinline__ void multiply_step(typename T::Sum (&acc)[T::kSums], uint64_t x, uint64_t w,
                                              int add) {
  if constexpr (std::is_same_v<typename T::Element, int8_t>)
    ptx::wgmma_s8(acc, x, w, add);
  else
    ptx::wgmma_bf16<T::kMajorX, T::kMajorW>(acc, x, w, add);
}

template <bool kValue>
struct Constant {
  __device__ constexpr operator bool() const { return kValue; }
};

// acc = x rows [first_row, first_row + kConsumerM) of the tile times all of its w. One group of products
// stays in flight while the next stage is waited for. after_issue(k_block) runs when a stage's products are
// on their way; with_step(block, x, add) may issue more products on the x of a step.
//
// A tile's first products do not add to acc. Whether they do is a predicate of the instruction, so within one
// loop over all stages the compiler must take acc for read there: all of it stays live from tile to tile,
// through the epilogue, which is left with few registers. kFresh takes the first stage out of the loop: each
// sum's register is free as soon as the epilogue has used it. That pays where the epilogue computes much.
template <class T, bool kFresh, class AfterIssue, class WithStep>
__device__ __forceinline__ void multiply(typename T::Sum (&acc)[T::kBlocksM][T::kSums],
                                         SharedMemory<T>& shared, RingPosition<T>& at, int k_blocks,
                                         int first_row, int lane, int rank, const char* role,
                                         const AfterIssue& after_issue, const WithStep& with_step) {
  int previous = 0;
  const auto multiply_stage = [&](int k_block, auto first) {  // first: bool or Constant
    ptx::mbarrier_wait(&shared.full[at.stage], at.parity, role, at.stage);
    const uint64_t x = ptx::wgmma_descriptor(shared.x[at.stage] + first_row * kRowBytes);
    const uint64_t w = ptx::wgmma_descriptor(shared.w[at.stage], T::kBlockK * kRowBytes);
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < kRowBytes / 32; ++step) {
#pragma unroll
      for (int block = 0; block < T::kBlocksM; ++block) {
        const uint64_t x_step = ptx::wgmma_advance(x, block * 64 * kRowBytes + step * step_bytes(T::kMajorX));
        const int add = !first || step > 0;
        multiply_step<T>(acc[block], x_step, ptx::wgmma_advance(w, step * step_bytes(T::kMajorW)), add);
        with_step(block, x_step, add);
      }
    }
    ptx::wgmma_commit();
    after_issue(k_block);
    ptx::wgmma_wait<1>();
    if (!first) release(shared, previous, lane, rank);
    previous = at.stage;
    at.advance();
  };
  if constexpr (kFresh) {
    multiply_stage(0, Constant<true>{});
    for (int k_block = 1; k_block < k_blocks; ++k_block) multiply_stage(k_block, Constant<false>{});
  } else {
    for (int k_block = 0; k_block < k_blocks; ++k_block) multiply_stage(k_block, k_block == 0);
  }
  ptx::wgmma_wait<0>();
#pragma unroll
  for (int block = 0; block < T::kBlocksM; ++block) ptx::wgmma_results(acc[block]);
  release(shared, previous, lane, rank);
}

// ---- the kernel ----------------------------------------------------------------

template <class T, class Epilogue>
__global__ void __launch_bounds__(T::kThreads, 1)
    gemm_kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map,
                const __grid_constant__ typename Epilogue::Arguments arguments, const Walk walk) {
  extern __shared__ __align__(1024) uint8_t raw[];
  SharedMemory<T>& shared = *reinterpret_cast<SharedMemory<T>*>(raw);
  const int warp =
      __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0);  // uniform, and the compiler knows it
  const int lane = threadIdx.x % 32;
  const int rank = static_cast<int>(ptx::cluster_block_rank());
  constexpr bool kRowSums = requires { &Epilogue::wants_row_sums; };
  constexpr bool kFresh = requires { requires Epilogue::kFreshSums; };

  if (threadIdx.x == 0) {
    for (int s = 0; s < T::kStages; ++s) {
      ptx::mbarrier_init(&shared.full[s], 1);
      ptx::mbarrier_init(&shared.empty[s], T::kReleases);
    }
    for (int w = 0; w < 8; ++w) {
      for (int b = 0; b < T::kBuffers; ++b) ptx::mbarrier_init(&shared.piece_loaded[w][b], 1);
    }
    ptx::mbarrier_init_fence();
    ptx::tma_prefetch_map(&x_map);
    ptx::tma_prefetch_map(&w_map);
  }
  if constexpr (kRowSums) Epilogue::prepare(shared.pieces[0][0]);
  ptx::cluster_sync();
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();

  constexpr bool kParts = takes_parts<Epilogue>;
  const int units = kParts ? walk.units() : walk.tiles();
  const int first_unit = blockIdx.x / T::kClusterSize, unit_step = gridDim.x / T::kClusterSize;
  const auto no_more = [](int, uint64_t, int) {};

  if (warp < 4) {  // ---- producer
    ptx::give_back_registers<40>();
    if (threadIdx.x == 0) produce<T, kParts>(shared, x_map, w_map, walk, first_unit, units, unit_step, rank);
    __syncwarp();
  } else {  // ---- consumers
    ptx::take_registers<232>();
    const int consumer = warp / 4 - 1;
    const int warp_row = warp % 4 * 16;
    RingPosition<T> at;
    Epilogue epilogue(arguments, walk, shared.pieces[warp - 4], shared.piece_loaded[warp - 4], lane);

    if constexpr (T::kSchedule == Schedule::staggered) {
      const int first_row = consumer * T::kConsumerM;
      bool hold = walk.stagger > 0 && first_unit < units;  // only once: the distance then keeps itself
      for (int unit = first_unit; unit < units; unit += unit_step) {
        const TilePosition tile = tile_position<T, kParts>(walk, unit, rank);
        const int k_blocks = tile.k_blocks;
        epilogue.prefetch(tile.m + first_row + warp_row, tile.n, tile.part);
        if (hold && consumer == 1) ptx::named_barrier_sync<1>(256);
        const int last_held = min(walk.stagger, k_blocks) - 1;
        typename T::Sum acc[T::kBlocksM][T::kSums];
        const auto let_go = [&](int k_block) {
          if (hold && consumer == 0 && k_block == last_held) ptx::named_barrier_arrive<1>(256);
        };
        bool multiplied = false;
        if constexpr (kRowSums) {
          if (epilogue.wants_row_sums()) {
            float sums[T::kBlocksM][4];
            const uint64_t ones = ptx::wgmma_descriptor(shared.pieces);
            const auto sum_rows = [&](int block, uint64_t x, int add) {
              ptx::wgmma_bf16<T::kMajorX, Major::k>(sums[block], x, ones, add);
            };
            multiply<T, kFresh>(acc, shared, at, k_blocks, first_row, lane, rank, "consumer", let_go,
                                sum_rows);
#pragma unroll
            for (int block = 0; block < T::kBlocksM; ++block) ptx::wgmma_results(sums[block]);
            epilogue.finish_row_sums(sums);
            multiplied = true;
          }
        }
        if (!multiplied)
          multiply<T, kFresh>(acc, shared, at, k_blocks, first_row, lane, rank, "consumer", let_go, no_more);
        hold = false;
        epilogue.finish(acc);
      }
    } else {
      const int k_blocks = walk.k_blocks;  // tiles are whole
      // Turns: barrier 1 is "consumer 0 may multiply", barrier 2 the same for consumer 1.
      if (consumer == 1) {
        ptx::named_barrier_arrive<1>(256);
        at.advance(k_blocks);
      }
      for (int unit = first_unit + consumer * unit_step; unit < units; unit += 2 * unit_step) {
        const TilePosition tile = tile_position<T, kParts>(walk, unit, rank);
        epilogue.prefetch(tile.m + warp_row, tile.n, tile.part);
        if (consumer == 0)
          ptx::named_barrier_sync<1>(256);
        else
          ptx::named_barrier_sync<2>(256);
        typename T::Sum acc[T::kBlocksM][T::kSums];
        const auto give_turn = [&](int k_block) {
          if (k_block == k_blocks - 1) {
            if (consumer == 0)
              ptx::named_barrier_arrive<2>(256);
            else
              ptx::named_barrier_arrive<1>(256);
          }
        };
        multiply<T, kFresh>(acc, shared, at, k_blocks, 0, lane, rank, "consumer", give_turn, no_more);
        at.advance(k_blocks);  // the other consumer's tile
        epilogue.finish(acc);
      }
    }
    if (lane == 0) ptx::tma_store_wait_read<0>();  // shared memory must outlive its readers
    __syncwarp();
  }
  // A block must not go while the other may still arrive at its barriers.
  ptx::cluster_sync();
}

}  // namespace switchback::sm90
