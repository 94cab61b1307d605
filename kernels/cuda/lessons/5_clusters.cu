// Rung 5: blocks that stay, and share.
//
// Persistent: one block per multiprocessor walks a list of tiles, so barriers are set up once and the
// producer fetches the next tile's first stages while the consumers still write the last one. Tiles are
// walked row by row of tiles: all blocks working at one time share a few rows of x, and w (a few MB) stays in
// L2.
//
// Clusters of two: the blocks work on two tiles above each other, which need the same 256 rows of w. Each
// loads half of them and multicasts to both: a third less traffic between L2 and the multiprocessors (32
// instead of 48 KiB a stage). The price: a stage is empty only when the consumers of both blocks have
// released it, and nobody may leave early.
#include "kernels/cuda/lessons/lesson.cuh"
#include "kernels/cuda/ptx/cluster.cuh"
#include "kernels/cuda/ptx/registers.cuh"
#include "kernels/cuda/ptx/tensor_map.cuh"
#include "kernels/cuda/ptx/tma.cuh"
#include "kernels/cuda/ptx/wgmma.cuh"

namespace switchback::lessons {
namespace {

constexpr int kTileM = 128, kTileN = 256, kBlockK = 128, kStages = 4;

struct Shared {
  alignas(1024) int8_t x[kStages][kTileM * kBlockK];
  alignas(1024) int8_t w[kStages][kTileN * kBlockK];
  uint64_t full[kStages], empty[kStages];
};

__global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1)
    cluster_kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map,
                   Problem p) {
  extern __shared__ __align__(1024) uint8_t raw[];
  Shared& shared = *reinterpret_cast<Shared*>(raw);
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0), lane = threadIdx.x % 32;
  const int rank = ptx::cluster_block_rank();
  const int k_blocks = (p.K + kBlockK - 1) / kBlockK;
  const int columns = (p.N + kTileN - 1) / kTileN, row_pairs = (p.M + 2 * kTileM - 1) / (2 * kTileM);
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      ptx::mbarrier_init(&shared.full[s], 1);
      ptx::mbarrier_init(&shared.empty[s], 16);  // consumer warps of both blocks
    }
    ptx::mbarrier_init_fence();
  }
  ptx::cluster_sync();

  int round = 0;   // stages since the start, over all tiles: place in the ring and parity follow from it
  if (warp < 4) {  // ---- producer
    ptx::give_back_registers<40>();
    if (threadIdx.x == 0) {
      for (int pair = blockIdx.x / 2; pair < columns * row_pairs; pair += gridDim.x / 2) {
        const int tile_m = (2 * (pair / columns) + rank) * kTileM, tile_n = pair % columns * kTileN;
        for (int k_block = 0; k_block < k_blocks; ++k_block, ++round) {
          const int stage = round % kStages, parity = round / kStages % 2;
          constexpr int kHalf = kTileN / 2;
          ptx::mbarrier_wait(&shared.empty[stage], parity ^ 1, "producer", stage);
          ptx::mbarrier_arrive_and_expect(&shared.full[stage], (kTileM + kTileN) * kBlockK);
          ptx::tma_load(shared.x[stage], &x_map, k_block * kBlockK, tile_m, &shared.full[stage]);
          ptx::tma_load_multicast(shared.w[stage] + rank * kHalf * kBlockK, &w_map, k_block * kBlockK,
                                  tile_n + rank * kHalf, &shared.full[stage], 0b11);
        }
      }
    }
    __syncwarp();
  } else {  // ---- consumers
    ptx::take_registers<232>();
    const int first_row = (warp / 4 - 1) * 64;
    for (int pair = blockIdx.x / 2; pair < columns * row_pairs; pair += gridDim.x / 2) {
      const int tile_m = (2 * (pair / columns) + rank) * kTileM, tile_n = pair % columns * kTileN;
      int acc[kTileN / 2];
      for (int k_block = 0; k_block < k_blocks; ++k_block, ++round) {
        const int stage = round % kStages, parity = round / kStages % 2;
        ptx::mbarrier_wait(&shared.full[stage], parity, "consumer", stage);
        const uint64_t x = ptx::wgmma_descriptor(shared.x[stage] + first_row * kBlockK);
        const uint64_t w = ptx::wgmma_descriptor(shared.w[stage]);
        ptx::wgmma_fence();
#pragma unroll
        for (int k = 0; k < kBlockK; k += 32) {
          ptx::wgmma_s8(acc, ptx::wgmma_advance(x, k), ptx::wgmma_advance(w, k), k_block > 0 || k > 0);
        }
        ptx::wgmma_commit();
        ptx::wgmma_wait<1>();
        if (k_block > 0 && lane < 2)
          ptx::mbarrier_arrive_in_cluster(&shared.empty[(round - 1) % kStages], lane);
      }
      ptx::wgmma_wait<0>();
      ptx::wgmma_results(acc);
      if (lane < 2) ptx::mbarrier_arrive_in_cluster(&shared.empty[(round - 1) % kStages], lane);
#pragma unroll
      for (int j = 0; j < kTileN / 8; ++j) {
        const int m = tile_m + first_row + warp % 4 * 16 + lane / 4, n = tile_n + 8 * j + 2 * (lane % 4);
        write_pair(p, m, n, acc[4 * j], acc[4 * j + 1]);
        write_pair(p, m + 8, n, acc[4 * j + 2], acc[4 * j + 3]);
      }
    }
  }
  ptx::cluster_sync();  // the other block may still arrive at this one's barriers
}

}  // namespace

void clusters(const Problem& p, cudaStream_t stream) {
  CUDA_CHECK(
      cudaFuncSetAttribute(cluster_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared)));
  const CUtensorMap x_map = ptx::make_tensor_map(p.x, p.M, p.K, 1, kTileM, kBlockK, ptx::Swizzle::bytes_128);
  const CUtensorMap w_map =
      ptx::make_tensor_map(p.w, p.N, p.K, 1, kTileN / 2, kBlockK, ptx::Swizzle::bytes_128);
  int multiprocessors;
  CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0));
  const int pairs = ceil_div(p.N, kTileN) * ceil_div(p.M, 2 * kTileM);
  const int blocks = 2 * (pairs < multiprocessors / 2 ? pairs : multiprocessors / 2);
  cluster_kernel<<<blocks, 384, sizeof(Shared), stream>>>(x_map, w_map, p);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace switchback::lessons
