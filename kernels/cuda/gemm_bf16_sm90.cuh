// gemm_bf16_sm90.cuh: the bf16 product on Hopper: gemm_sm90.cuh with one of the epilogues of
// gemm_bf16_sm90_epilogue.cuh.
#pragma once

#include "kernels/cuda/gemm_bf16_sm90_epilogue.cuh"
#include "kernels/cuda/gemm_sm90_launch.cuh"

namespace switchback::sm90 {

using cuda::GemmBf16;

// Wide tiles need fewer bytes for a product; how well they divide N decides between them.
template <Major kMajorW>
using Bf16Tile128 = Tile<__nv_bfloat16, 128, 128, 5, 4, Schedule::ping_pong, kMajorW>;
template <Major kMajorW>
using Bf16Tile160 = Tile<__nv_bfloat16, 128, 160, 5, 5, Schedule::ping_pong, kMajorW>;
template <Major kMajorW>
using Bf16Tile192 = Tile<__nv_bfloat16, 128, 192, 4, 4, Schedule::ping_pong, kMajorW>;
template <Major kMajorW>
using Bf16Tile256 = Tile<__nv_bfloat16, 128, 256, 4, 2, Schedule::staggered, kMajorW>;

template <class T, After kAfter, Gelu kGelu = Gelu::exact, bool kSecond = kAfter != After::nothing,
          bool kFresh = false>
void launch_bf16(const GemmBf16& a, const LaunchOptions& options, cudaStream_t stream) {
  const int M = static_cast<int>(a.M), N = static_cast<int>(a.N), K = static_cast<int>(a.K);
  if (M == 0 || N == 0) return;
  using Epilogue = Bf16Epilogue<T, kAfter, kGelu, kSecond, kFresh>;
  typename Epilogue::Arguments arguments;
  arguments.y_map = piece_map<T>(a.y, M, N);
  arguments.operand_map = Epilogue::kHasOperand ? piece_map<T>(a.operand, M, N) : arguments.y_map;
  arguments.second = Epilogue::kHasSecond && a.second;
  arguments.second_map = arguments.second ? piece_map<T>(a.second, M, N) : arguments.y_map;
  arguments.bias = static_cast<const __nv_bfloat16*>(a.bias);
  launch<T, Epilogue>(M, N, K, a.x, a.w, arguments, options, stream);
}

// gemm_bf16_gelu_sm90.cu
void gemm_bf16_gelu(const GemmBf16& a, int tile, const LaunchOptions& options, cudaStream_t stream);

}  // namespace switchback::sm90
