// Rung 6: the copy engine writes y, too.
//
// In rung 5 a warp writes its accumulators as it holds them: 4 bytes per thread, eight rows at a time, half
// of every 32-byte sector empty, addresses and bounds computed for each. Now it scales and rounds them, lays
// them out in shared memory with stmatrix (16 rows x 64 columns, 128-byte swizzle: no bank conflicts) and
// hands the piece to the copy engine, which knows the bounds. Two buffers per warp: one is written while the
// other is read. A warp waits for nobody else.
//
// Bias belongs to columns, so all rows of a tile need the same 256 values: each lane fetches 2 columns in 64
// before the products start and hands them round with shuffles when they are needed.
#include "kernels/cuda/lessons/lesson.cuh"
#include "kernels/cuda/ptx/cluster.cuh"
#include "kernels/cuda/ptx/matrix_fragments.cuh"
#include "kernels/cuda/ptx/registers.cuh"
#include "kernels/cuda/ptx/tensor_map.cuh"
#include "kernels/cuda/ptx/tma.cuh"
#include "kernels/cuda/ptx/wgmma.cuh"

namespace switchback::lessons {
namespace {

constexpr int kTileM = 128, kTileN = 256, kBlockK = 128, kStages = 4, kPieceN = 64;

struct Shared {
  alignas(1024) int8_t x[kStages][kTileM * kBlockK];
  alignas(1024) int8_t w[kStages][kTileN * kBlockK];
  alignas(1024) uint8_t pieces[8][2][16 * kPieceN * 2];  // per consumer warp
  uint64_t full[kStages], empty[kStages];
};

__device__ __forceinline__ float low_bf16(uint32_t both) { return __uint_as_float(both << 16); }
__device__ __forceinline__ float high_bf16(uint32_t both) { return __uint_as_float(both & 0xffff0000u); }

__global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1)
    store_kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map,
                 const __grid_constant__ CUtensorMap y_map, Problem p) {
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
      const int row = tile_m + first_row + warp % 4 * 16;
      float scale[2];
      uint32_t bias[kTileN / 64];  // columns 64 t + 2 lane, +1
      for (int half = 0; half < 2; ++half) {
        const int m = row + 8 * half + lane / 4;
        scale[half] = m < p.M ? __fmul_rn(p.row_scale[m], *p.tensor_scale) : 0.0f;
      }
#pragma unroll
      for (int t = 0; t < kTileN / 64; ++t) {
        const int n = tile_n + 64 * t + 2 * lane;
        bias[t] = n < p.N ? *reinterpret_cast<const uint32_t*>(p.bias + n) : 0;
      }
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
      if (p.accumulators) {
#pragma unroll
        for (int j = 0; j < kTileN / 8; ++j) {
          const int m = row + lane / 4, n = tile_n + 8 * j + 2 * (lane % 4);
          write_pair(p, m, n, acc[4 * j], acc[4 * j + 1]);
          write_pair(p, m + 8, n, acc[4 * j + 2], acc[4 * j + 3]);
        }
        continue;
      }
#pragma unroll
      for (int t = 0; t < kTileN / kPieceN; ++t) {
        uint8_t* piece = shared.pieces[warp - 4][t % 2];
        if (lane == 0) ptx::tma_store_wait_read<1>();  // the piece before the last has left this buffer
        __syncwarp();
#pragma unroll
        for (int j = 0; j < kPieceN / 8; j += 2) {  // two column groups: four 8 x 8 matrices
          uint32_t result[4];
#pragma unroll
          for (int q = 0; q < 4; ++q) {
            const int* sums = acc + 4 * (8 * t + j + q / 2) + q % 2 * 2;
            const uint32_t b = __shfl_sync(~0u, bias[t], 4 * (j + q / 2) + lane % 4);
            const __nv_bfloat162 both = __floats2bfloat162_rn(
                gemm_int8_element<Extra::none>(sums[0], scale[q % 2], low_bf16(b), 0.0f, 1.0f),
                gemm_int8_element<Extra::none>(sums[1], scale[q % 2], high_bf16(b), 0.0f, 1.0f));
            result[q] = *reinterpret_cast<const uint32_t*>(&both);
          }
          const int piece_row = lane % 16, unit = j + lane / 16;
          ptx::store_matrices(ptx::shared_address(piece) + piece_row * 128 + ((unit ^ (piece_row % 8)) * 16),
                              result);
        }
        ptx::fence_async_proxy();
        __syncwarp();
        if (lane == 0) {
          ptx::tma_store(&y_map, tile_n + kPieceN * t, row, piece);
          ptx::tma_store_commit();
        }
      }
    }
    if (lane == 0) ptx::tma_store_wait_read<0>();
    __syncwarp();
  }
  ptx::cluster_sync();  // the other block may still arrive at this one's barriers
}

}  // namespace

void bulk_stores(const Problem& p, cudaStream_t stream) {
  CUDA_CHECK(cudaFuncSetAttribute(store_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared)));
  const CUtensorMap x_map = ptx::make_tensor_map(p.x, p.M, p.K, 1, kTileM, kBlockK, ptx::Swizzle::bytes_128);
  const CUtensorMap w_map =
      ptx::make_tensor_map(p.w, p.N, p.K, 1, kTileN / 2, kBlockK, ptx::Swizzle::bytes_128);
  const CUtensorMap y_map = ptx::make_tensor_map(p.y, p.M, p.N, 2, 16, kPieceN, ptx::Swizzle::bytes_128);
  int multiprocessors;
  CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0));
  const int pairs = ceil_div(p.N, kTileN) * ceil_div(p.M, 2 * kTileM);
  const int blocks = 2 * (pairs < multiprocessors / 2 ? pairs : multiprocessors / 2);
  store_kernel<<<blocks, 384, sizeof(Shared), stream>>>(x_map, w_map, y_map, p);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace switchback::lessons
