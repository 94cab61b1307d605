// Rung 4: a ring of four stages, and warps with roles.
//
// Warpgroup 0 produces: one of its threads keeps the copy engine four stages ahead. Warpgroups 1 and 2
// consume: each multiplies half of the rows of a 128 x 256 tile. Two barriers per stage replace every
// __syncthreads: full[s], "the bytes have come", and empty[s], "all eight consumer warps have finished
// reading". A consumer issues the products of one stage while those of the stage before still run, so the
// tensor cores are never between two instructions.
//
// The producer needs few registers, the consumers 128 accumulators each: setmaxnreg moves them over.
#include "kernels/cuda/lessons/lesson.cuh"
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

__global__ void __launch_bounds__(384, 1) ring_kernel(const __grid_constant__ CUtensorMap x_map,
                                                      const __grid_constant__ CUtensorMap w_map, Problem p) {
  extern __shared__ __align__(1024) uint8_t raw[];
  Shared& shared = *reinterpret_cast<Shared*>(raw);
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0), lane = threadIdx.x % 32;
  const int tile_m = blockIdx.y * kTileM, tile_n = blockIdx.x * kTileN;
  const int k_blocks = (p.K + kBlockK - 1) / kBlockK;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      ptx::mbarrier_init(&shared.full[s], 1);   // the producer's announcement of bytes
      ptx::mbarrier_init(&shared.empty[s], 8);  // one arrival per consumer warp
    }
    ptx::mbarrier_init_fence();
  }
  __syncthreads();

  if (warp < 4) {  // ---- producer
    ptx::give_back_registers<40>();
    if (threadIdx.x == 0) {
      for (int k_block = 0; k_block < k_blocks; ++k_block) {
        const int stage = k_block % kStages, parity = k_block / kStages % 2;
        ptx::mbarrier_wait(&shared.empty[stage], parity ^ 1, "producer",
                           stage);  // the first round finds them empty
        ptx::mbarrier_arrive_and_expect(&shared.full[stage], (kTileM + kTileN) * kBlockK);
        ptx::tma_load(shared.x[stage], &x_map, k_block * kBlockK, tile_m, &shared.full[stage]);
        ptx::tma_load(shared.w[stage], &w_map, k_block * kBlockK, tile_n, &shared.full[stage]);
      }
    }
  } else {  // ---- consumers
    ptx::take_registers<232>();
    const int first_row = (warp / 4 - 1) * 64;
    int acc[kTileN / 2];
    for (int k_block = 0; k_block < k_blocks; ++k_block) {
      const int stage = k_block % kStages, parity = k_block / kStages % 2;
      ptx::mbarrier_wait(&shared.full[stage], parity, "consumer", stage);
      const uint64_t x = ptx::wgmma_descriptor(shared.x[stage] + first_row * kBlockK);
      const uint64_t w = ptx::wgmma_descriptor(shared.w[stage]);
      ptx::wgmma_fence();
#pragma unroll
      for (int k = 0; k < kBlockK; k += 32) {
        ptx::wgmma_s8(acc, ptx::wgmma_advance(x, k), ptx::wgmma_advance(w, k), k_block > 0 || k > 0);
      }
      ptx::wgmma_commit();
      ptx::wgmma_wait<1>();  // the stage before has been read
      if (k_block > 0 && lane == 0) ptx::mbarrier_arrive(&shared.empty[(k_block - 1) % kStages]);
    }
    ptx::wgmma_wait<0>();
    ptx::wgmma_results(acc);
#pragma unroll
    for (int j = 0; j < kTileN / 8; ++j) {
      const int m = tile_m + first_row + warp % 4 * 16 + lane / 4, n = tile_n + 8 * j + 2 * (lane % 4);
      write_pair(p, m, n, acc[4 * j], acc[4 * j + 1]);
      write_pair(p, m + 8, n, acc[4 * j + 2], acc[4 * j + 3]);
    }
  }
}

}  // namespace

void ring(const Problem& p, cudaStream_t stream) {
  CUDA_CHECK(cudaFuncSetAttribute(ring_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared)));
  const CUtensorMap x_map = ptx::make_tensor_map(p.x, p.M, p.K, 1, kTileM, kBlockK, ptx::Swizzle::bytes_128);
  const CUtensorMap w_map = ptx::make_tensor_map(p.w, p.N, p.K, 1, kTileN, kBlockK, ptx::Swizzle::bytes_128);
  ring_kernel<<<dim3(ceil_div(p.N, kTileN), ceil_div(p.M, kTileM)), 384, sizeof(Shared), stream>>>(x_map,
                                                                                                   w_map, p);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace switchback::lessons
