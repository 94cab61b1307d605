// Rung 3: Hopper's own instructions, in the simplest order that works.
//
// The copy engine (TMA) fetches a whole box of x and of w on the word of one thread, swizzled on the way; an
// mbarrier says when the bytes are there; wgmma multiplies straight from shared memory, 64 rows at a time, by
// four warps together. No ldmatrix, no addresses, no registers for operands.
//
// One stage only: load, wait, multiply, wait, and again. While a block waits for its bytes the tensor cores
// have nothing from it; what keeps them busy is that three blocks share a multiprocessor.
#include "kernels/cuda/lessons/lesson.cuh"
#include "kernels/cuda/ptx/tensor_map.cuh"
#include "kernels/cuda/ptx/tma.cuh"
#include "kernels/cuda/ptx/wgmma.cuh"

namespace switchback::lessons {
namespace {

constexpr int kTile = 128, kBlockK = 128;

struct Shared {
  alignas(1024) int8_t x[kTile * kBlockK];
  alignas(1024) int8_t w[kTile * kBlockK];
  uint64_t full;
};

__global__ void __launch_bounds__(128)
    warpgroup_kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map,
                     Problem p) {
  extern __shared__ __align__(1024) uint8_t raw[];
  Shared& shared = *reinterpret_cast<Shared*>(raw);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int tile_m = blockIdx.y * kTile, tile_n = blockIdx.x * kTile;
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(&shared.full, 1);
    ptx::mbarrier_init_fence();
  }
  __syncthreads();

  int acc[2][64];  // rows 0-63 and 64-127 of the tile
  for (int k_block = 0; k_block * kBlockK < p.K; ++k_block) {
    if (threadIdx.x == 0) {
      ptx::mbarrier_arrive_and_expect(&shared.full, 2 * kTile * kBlockK);
      ptx::tma_load(shared.x, &x_map, k_block * kBlockK, tile_m, &shared.full);
      ptx::tma_load(shared.w, &w_map, k_block * kBlockK, tile_n, &shared.full);
    }
    ptx::mbarrier_wait(&shared.full, k_block % 2, "block", 0);
    const uint64_t x = ptx::wgmma_descriptor(shared.x), w = ptx::wgmma_descriptor(shared.w);
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kBlockK; k += 32) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        ptx::wgmma_s8(acc[half], ptx::wgmma_advance(x, half * 64 * kBlockK + k), ptx::wgmma_advance(w, k),
                      k_block > 0 || k > 0);
      }
    }
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
    ptx::wgmma_results(acc[0]);
    ptx::wgmma_results(acc[1]);
    __syncthreads();  // all four warps have finished reading the stage
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int j = 0; j < kTile / 8; ++j) {
      const int m = tile_m + 64 * half + 16 * warp + lane / 4, n = tile_n + 8 * j + 2 * (lane % 4);
      write_pair(p, m, n, acc[half][4 * j], acc[half][4 * j + 1]);
      write_pair(p, m + 8, n, acc[half][4 * j + 2], acc[half][4 * j + 3]);
    }
  }
}

}  // namespace

void warpgroups(const Problem& p, cudaStream_t stream) {
  CUDA_CHECK(
      cudaFuncSetAttribute(warpgroup_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared)));
  const CUtensorMap x_map = ptx::make_tensor_map(p.x, p.M, p.K, 1, kTile, kBlockK, ptx::Swizzle::bytes_128);
  const CUtensorMap w_map = ptx::make_tensor_map(p.w, p.N, p.K, 1, kTile, kBlockK, ptx::Swizzle::bytes_128);
  warpgroup_kernel<<<dim3(ceil_div(p.N, kTile), ceil_div(p.M, kTile)), 128, sizeof(Shared), stream>>>(
      x_map, w_map, p);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace switchback::lessons
