// Rung 2: tensor cores, the way of Ampere.
//
// A block computes 128 x 128 of y with 8 warps, each 64 x 32 as 4 x 4 products mma.m16n8k32. Operands pass
// through shared memory in pieces of 64 of K, three of them in a ring: cp.async copies 16 bytes per thread
// past the registers while older pieces are multiplied. An operand byte fetched from L2 is now used 128 times
// instead of once.
//
// Rows in shared memory are 64 bytes, four units of 16. ldmatrix reads the same unit of eight rows at once:
// were they stored straight, four of the eight would lie in the same banks. Unit u of row r is stored at u ^
// (r/2 mod 4) instead.
#include "kernels/cuda/lessons/lesson.cuh"
#include "kernels/cuda/ptx/matrix_fragments.cuh"
#include "kernels/cuda/ptx/mma_int8.cuh"

namespace switchback::lessons {
namespace {

constexpr int kTile = 128, kBlockK = 64, kStages = 3;

struct Shared {
  int8_t x[kStages][kTile * kBlockK], w[kStages][kTile * kBlockK];
};

__device__ __forceinline__ uint32_t unit_offset(int row, int unit) {
  return row * kBlockK + ((unit ^ (row / 2 % 4)) * 16);
}

// 128 rows x 64 bytes from (row, k) of a matrix (rows, K); what lies outside becomes zero. 256 threads copy 2
// x 16 bytes each.
__device__ __forceinline__ void copy_tile(int8_t* to, const int8_t* from, int row, int rows, int k, int K) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int at = threadIdx.x + 256 * i, r = at / 4, unit = at % 4;
    const bool inside = row + r < rows && k + unit * 16 < K;
    const int8_t* source = inside ? from + static_cast<int64_t>(row + r) * K + k + unit * 16 : from;
    ptx::copy_async_16(ptx::shared_address(to) + unit_offset(r, unit), source, inside ? 16 : 0);
  }
}

__global__ void __launch_bounds__(256) tensor_core_kernel(Problem p) {
  extern __shared__ __align__(128) uint8_t raw[];
  Shared& shared = *reinterpret_cast<Shared*>(raw);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int tile_m = blockIdx.y * kTile, tile_n = blockIdx.x * kTile;
  const int warp_m = warp / 4 * 64, warp_n = warp % 4 * 32;
  const int k_blocks = ceil_div(p.K, kBlockK);

  const auto load = [&](int k_block) {
    if (k_block < k_blocks) {
      copy_tile(shared.x[k_block % kStages], p.x, tile_m, p.M, k_block * kBlockK, p.K);
      copy_tile(shared.w[k_block % kStages], p.w, tile_n, p.N, k_block * kBlockK, p.K);
    }
    ptx::copy_async_commit();  // also an empty group: the count of groups stays the count of pieces
  };
  for (int k_block = 0; k_block < kStages - 1; ++k_block) load(k_block);

  int acc[4][4][4] = {};
  for (int k_block = 0; k_block < k_blocks; ++k_block) {
    ptx::copy_async_wait<kStages - 2>();
    __syncthreads();  // everyone's copies have come, and everyone has finished with the stage that is loaded
                      // next
    load(k_block + kStages - 1);
    const uint32_t x = ptx::shared_address(shared.x[k_block % kStages]);
    const uint32_t w = ptx::shared_address(shared.w[k_block % kStages]);
#pragma unroll
    for (int k = 0; k < kBlockK / 32; ++k) {
      uint32_t a[4][4], b[2][4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        ptx::load_matrices(a[i], x + unit_offset(warp_m + 16 * i + lane % 16, 2 * k + lane / 16));
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        ptx::load_matrices(b[j],
                           w + unit_offset(warp_n + 16 * j + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j)
          ptx::mma_s8(acc[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
      }
    }
  }

#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int m = tile_m + warp_m + 16 * i + lane / 4, n = tile_n + warp_n + 8 * j + 2 * (lane % 4);
      write_pair(p, m, n, acc[i][j][0], acc[i][j][1]);
      write_pair(p, m + 8, n, acc[i][j][2], acc[i][j][3]);
    }
  }
}

}  // namespace

void tensor_cores(const Problem& p, cudaStream_t stream) {
  CUDA_CHECK(
      cudaFuncSetAttribute(tensor_core_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared)));
  tensor_core_kernel<<<dim3(ceil_div(p.N, kTile), ceil_div(p.M, kTile)), 256, sizeof(Shared), stream>>>(p);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace switchback::lessons
