// gemm_int8_sm90.cuh: the int8 product on Hopper.   y (M, N) = epilogue(x (M, K) w (N, K)ᵀ), see gemm_int8.cuh.
//
// The tensor cores of one multiprocessor do 4096 multiply-adds per clock in int8. Everything here serves one
// aim: that they never wait, and that they get their operands for little energy, because under full load this
// chip lowers its clock to stay within its power. The roles, all in one block of 384 threads:
//
//   producer    warpgroup 0: one thread asks the copy engine for 128-byte wide pieces of x and w, `kStages`
//               ahead; the ring of stages is guarded by two barriers each: full[s] (the bytes have come) and
//               empty[s] (all readers have finished)
//   consumers   warpgroups 1 and 2: multiply (wgmma, accumulators in registers), then scale, round, and hand
//               16-row pieces of y to the copy engine; no consumer ever computes a global address of y
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
// Numbers for a tile of 128 x 160, per stage of 128 of K: 36 KiB would come from L2 (26 with the pair) while
// the tensor cores work 640 clocks, so 58 (42) bytes per clock; L2 delivers about 45 to each multiprocessor
// when all ask at once.
//
// gemm_int8_sm90_tile.cuh: shapes, shared memory, order of tiles.   gemm_int8_sm90_epilogue.cuh: from sums to
// y.
#pragma once

#include <algorithm>

#include "kernels/cuda/cuda_check.cuh"
#include "kernels/cuda/gemm_int8.cuh"
#include "kernels/cuda/gemm_int8_sm90_epilogue.cuh"
#include "kernels/cuda/gemm_int8_sm90_tile.cuh"
#include "kernels/cuda/ptx/cluster.cuh"
#include "kernels/cuda/ptx/dependent_launch.cuh"
#include "kernels/cuda/ptx/mbarrier.cuh"
#include "kernels/cuda/ptx/named_barrier.cuh"
#include "kernels/cuda/ptx/registers.cuh"
#include "kernels/cuda/ptx/tensor_map.cuh"
#include "kernels/cuda/ptx/tma.cuh"
#include "kernels/cuda/ptx/wgmma.cuh"

namespace switchback::sm90 {

// ---- producer: one thread ----------------------------------------------------------------

template <class T>
__device__ __forceinline__ void produce(SharedMemory<T>& shared, const CUtensorMap& x_map,
                                        const CUtensorMap& w_map, const Parameters& p, int first_unit,
                                        int units, int unit_step, int rank) {
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
      ptx::tma_load(x, &x_map, k, tile.m, full);
      // Both blocks need all of w: each loads half of its rows for both.
      const int half = rank * T::kTileN / 2;
      ptx::tma_load_multicast(w + half * T::kBlockK, &w_map, k, tile.n + half, full, 0b11);
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

// acc = x rows [first_row, first_row + kConsumerM) of the tile times all of its w. One group of products
// stays in flight while the next stage is waited for. after_issue(k_block) runs when a stage's products are
// on their way.
template <class T, class AfterIssue>
__device__ __forceinline__ void multiply(int (&acc)[T::kBlocksM][T::kTileN / 2], SharedMemory<T>& shared,
                                         RingPosition<T>& at, int k_blocks, int first_row, int lane, int rank,
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
        ptx::wgmma_s8(acc[block], ptx::wgmma_advance(x, block * 64 * T::kBlockK + k),
                      ptx::wgmma_advance(w, k), k_block > 0 || k > 0);
      }
    }
    ptx::wgmma_commit();
    after_issue(k_block);
    ptx::wgmma_wait<1>();
    if (k_block > 0) release(shared, previous, lane, rank);
    previous = at.stage;
    at.advance();
  }
  ptx::wgmma_wait<0>();
#pragma unroll
  for (int block = 0; block < T::kBlocksM; ++block) ptx::wgmma_results(acc[block]);
  release(shared, previous, lane, rank);
}

// ---- the kernel ----------------------------------------------------------------

template <class T, Extra kExtra, bool kColumnScale, Output kOutput>
__global__ void __launch_bounds__(T::kThreads, 1)
    gemm_int8_kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map,
                     const __grid_constant__ CUtensorMap y_map, const __grid_constant__ CUtensorMap extra_map,
                     const Parameters p) {
  extern __shared__ __align__(1024) uint8_t raw[];
  SharedMemory<T>& shared = *reinterpret_cast<SharedMemory<T>*>(raw);
  const int warp =
      __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0);  // uniform, and the compiler knows it
  const int lane = threadIdx.x % 32;
  const int rank = static_cast<int>(ptx::cluster_block_rank());

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
  ptx::cluster_sync();
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
        multiply<T>(acc, shared, at, k_blocks, first_row, lane, rank, "consumer", [&](int k_block) {
          if (hold && consumer == 0 && k_block == last_held) ptx::named_barrier_arrive<1>(256);
        });
        hold = false;
        if constexpr (kOutput == Output::bf16)
          epilogue.finish(acc, y_map, extra_map);
        else
          write_accumulators<T>(acc, p, tile.m + first_row + warp_row, tile.n, lane);
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
        if (consumer == 0)
          ptx::named_barrier_sync<1>(256);
        else
          ptx::named_barrier_sync<2>(256);
        int acc[T::kBlocksM][T::kTileN / 2];
        multiply<T>(acc, shared, at, k_blocks, 0, lane, rank, "consumer", [&](int k_block) {
          if (k_block == k_blocks - 1) {
            if (consumer == 0)
              ptx::named_barrier_arrive<2>(256);
            else
              ptx::named_barrier_arrive<1>(256);
          }
        });
        at.advance(k_blocks);  // the other consumer's tile
        if constexpr (kOutput == Output::bf16)
          epilogue.finish(acc, y_map, extra_map);
        else
          write_accumulators<T>(acc, p, tile.m + warp_row, tile.n, lane);
      }
    }
    if (lane == 0) ptx::tma_store_wait_read<0>();  // shared memory must outlive its readers
    __syncwarp();
  }
  // A block must not go while the other may still arrive at its barriers.
  ptx::cluster_sync();
}

// ---- launch ----------------------------------------------------------------

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
void launch(const GemmInt8& a, const LaunchOptions& options, cudaStream_t stream,
            int* accumulators = nullptr) {
  const int M = static_cast<int>(a.x.rows()), N = static_cast<int>(a.w.rows()),
            K = static_cast<int>(a.x.cols());
  if (M == 0 || N == 0) return;
  constexpr size_t kSharedBytes = sizeof(SharedMemory<T>);
  static_assert(kSharedBytes <= 232448, "a block has 227 KiB of shared memory");
  auto* kernel = gemm_int8_kernel<T, kExtra, kColumnScale, kOutput>;
  cudaLaunchConfig_t config = {};
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

  static const int clusters = [&] {  // that run at the same time
    CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
    config.gridDim = T::kClusterSize;
    int count;
    CUDA_CHECK(cudaOccupancyMaxActiveClusters(&count, kernel, &config));
    return count;
  }();

  const auto ceil_div = [](int n, int d) { return (n + d - 1) / d; };
  Parameters p;
  p.M = M, p.N = N, p.K = K;
  p.row_units = ceil_div(M, T::kTileM * 2);
  p.column_units = ceil_div(N, T::kTileN);
  const int64_t unit_bytes = int64_t{K} * T::kTileN;
  p.group = static_cast<int>(std::clamp<int64_t>(options.band_bytes / unit_bytes, 1, p.column_units));
  p.stagger = options.stagger < T::kStages ? options.stagger : T::kStages - 1;
  p.row_scale = a.row_scale.as<float>();
  p.weight_scale = a.weight_scale.as<float>();
  p.bias = static_cast<const __nv_bfloat16*>(a.bias.data);
  p.gamma = static_cast<const __nv_bfloat16*>(a.gamma.data);
  p.accumulators = accumulators;

  using ptx::Swizzle;
  constexpr Swizzle kPieceSwizzle = T::kChunk == 64 ? Swizzle::bytes_128 : Swizzle::bytes_64;
  const CUtensorMap x_map =
      ptx::make_tensor_map(a.x.data, M, K, 1, T::kTileM, T::kBlockK, Swizzle::bytes_128);
  const CUtensorMap w_map =
      ptx::make_tensor_map(a.w.data, N, K, 1, T::kTileN / 2, T::kBlockK, Swizzle::bytes_128);
  const CUtensorMap y_map = ptx::make_tensor_map(a.y.data, M, N, 2, 16, T::kChunk, kPieceSwizzle);
  const CUtensorMap extra_map =
      kExtra == Extra::none ? y_map
                            : ptx::make_tensor_map(a.extra.data, M, N, 2, 16, T::kChunk, kPieceSwizzle);

  const int units = p.row_units * p.column_units;
  config.gridDim = std::min(units, clusters) * T::kClusterSize;
  CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, x_map, w_map, y_map, extra_map, p));
}

}  // namespace switchback::sm90
