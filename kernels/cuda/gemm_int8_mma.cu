// gemm_int8_mma.cu: the int8 product on Ampere and later, with mma.sync.   y (M, N) = epilogue(x w^T),
// gemm_int8.cuh.
//
// The fallback of gemm_int8_sm90: plain and short, about half as fast on Hopper. A block computes 128 x 128
// of y with 8 warps of 64 x 32, operands come through a ring of four stages of 64 of K filled by cp.async;
// each thread writes its own pairs of columns. lessons/2_tensor_cores.cu explains the same kernel step by
// step.
#include <cstdint>

#include "kernels/cuda/cuda_check.cuh"
#include "kernels/cuda/gemm_int8.cuh"
#include "kernels/cuda/ptx/matrix_fragments.cuh"
#include "kernels/cuda/ptx/mma_int8.cuh"

namespace switchback {
namespace {

constexpr int kTile = 128, kBlockK = 64, kStages = 4, kThreads = 256;

struct Shared {
  int8_t x[kStages][kTile * kBlockK], w[kStages][kTile * kBlockK];
};

struct Operands {
  int M, N, K;
  const int8_t* x;
  const int8_t* w;
  const float* row_scale;
  const float* weight_scale;
  const __nv_bfloat16* bias;
  const __nv_bfloat16* gamma;
  const __nv_bfloat16* extra;
  __nv_bfloat16* y;
};

// Unit u (16 bytes) of row r lies at u ^ (r/2 mod 4): ldmatrix then reads eight rows without bank conflicts.
__device__ __forceinline__ uint32_t unit_offset(int row, int unit) {
  return row * kBlockK + ((unit ^ (row / 2 % 4)) * 16);
}

// 128 rows x 64 bytes from (row, k) of a matrix (rows, K); zeros outside.
__device__ __forceinline__ void copy_tile(int8_t* to, const int8_t* from, int row, int rows, int k, int K) {
#pragma unroll
  for (int i = 0; i < kTile * kBlockK / 16 / kThreads; ++i) {
    const int at = threadIdx.x + kThreads * i, r = at / 4, unit = at % 4;
    const bool inside = row + r < rows && k + unit * 16 < K;
    const int8_t* source = inside ? from + static_cast<int64_t>(row + r) * K + k + unit * 16 : from;
    ptx::copy_async_16(ptx::shared_address(to) + unit_offset(r, unit), source, inside ? 16 : 0);
  }
}

__device__ __forceinline__ float2 pair_of(const __nv_bfloat16* values, int64_t at, float absent) {
  if (!values) return {absent, absent};
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(values + at));
}

template <Extra kExtra, bool kColumnScale>
__device__ __forceinline__ void write_pair(const Operands& p, int m, int n, int a, int b) {
  if (m >= p.M || n >= p.N) return;
  const int64_t at = static_cast<int64_t>(m) * p.N + n;
  const float row_scale = p.row_scale[m];
  const float scale_a = __fmul_rn(row_scale, p.weight_scale[kColumnScale ? n : 0]);
  const float scale_b = kColumnScale ? __fmul_rn(row_scale, p.weight_scale[n + 1]) : scale_a;
  const float2 bias = pair_of(p.bias, n, 0.0f), gamma = pair_of(p.gamma, n, 1.0f);
  const float2 extra = kExtra == Extra::none ? float2{0.0f, 0.0f} : pair_of(p.extra, at, 0.0f);
  *reinterpret_cast<__nv_bfloat162*>(p.y + at) =
      __floats2bfloat162_rn(gemm_int8_element<kExtra>(a, scale_a, bias.x, extra.x, gamma.x),
                            gemm_int8_element<kExtra>(b, scale_b, bias.y, extra.y, gamma.y));
}

template <Extra kExtra, bool kColumnScale>
__global__ void __launch_bounds__(kThreads) gemm_int8_mma_kernel(Operands p) {
  extern __shared__ __align__(128) uint8_t raw[];
  Shared& shared = *reinterpret_cast<Shared*>(raw);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int tile_m = blockIdx.y * kTile, tile_n = blockIdx.x * kTile;
  const int warp_m = warp / 4 * 64, warp_n = warp % 4 * 32;
  const int k_blocks = (p.K + kBlockK - 1) / kBlockK;

  const auto load = [&](int k_block) {
    if (k_block < k_blocks) {
      copy_tile(shared.x[k_block % kStages], p.x, tile_m, p.M, k_block * kBlockK, p.K);
      copy_tile(shared.w[k_block % kStages], p.w, tile_n, p.N, k_block * kBlockK, p.K);
    }
    ptx::copy_async_commit();  // also an empty group: the count of groups stays the count of stages
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
      write_pair<kExtra, kColumnScale>(p, m, n, acc[i][j][0], acc[i][j][1]);
      write_pair<kExtra, kColumnScale>(p, m + 8, n, acc[i][j][2], acc[i][j][3]);
    }
  }
}

template <Extra kExtra, bool kColumnScale>
void launch(const GemmInt8& a, cudaStream_t stream) {
  const auto bf16 = [](const CView& view) { return static_cast<const __nv_bfloat16*>(view.data); };
  const Operands p = {static_cast<int>(a.x.rows()),
                      static_cast<int>(a.w.rows()),
                      static_cast<int>(a.x.cols()),
                      static_cast<const int8_t*>(a.x.data),
                      static_cast<const int8_t*>(a.w.data),
                      a.row_scale.as<float>(),
                      a.weight_scale.as<float>(),
                      bf16(a.bias),
                      bf16(a.gamma),
                      bf16(a.extra),
                      static_cast<__nv_bfloat16*>(a.y.data)};
  auto* kernel = gemm_int8_mma_kernel<kExtra, kColumnScale>;
  static const bool once = [&] {
    CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared)));
    return true;
  }();
  (void)once;
  const dim3 grid((p.N + kTile - 1) / kTile, (p.M + kTile - 1) / kTile);
  kernel<<<grid, kThreads, sizeof(Shared), stream>>>(p);
  CUDA_CHECK(cudaGetLastError());
}

template <Extra kExtra>
void launch(const GemmInt8& a, cudaStream_t stream) {
  if (a.weight_scale.size() > 1)
    launch<kExtra, true>(a, stream);
  else
    launch<kExtra, false>(a, stream);
}

}  // namespace

void gemm_int8_mma(const GemmInt8& a, cudaStream_t stream) {
  check_gemm_int8(a);
  if (a.y.size() == 0) return;
  switch (a.extra_kind) {
    case Extra::none:
      return launch<Extra::none>(a, stream);
    case Extra::residual:
      return launch<Extra::residual>(a, stream);
    case Extra::gelu_derivative:
      return launch<Extra::gelu_derivative>(a, stream);
  }
}

}  // namespace switchback
