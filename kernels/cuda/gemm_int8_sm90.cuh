// gemm_int8_sm90.cuh: the int8 product on Hopper, see gemm_int8.cuh.
//   y (M, N) = epilogue(x (M, K) w (N, K)ᵀ)
// gemm_sm90.cuh with one of the epilogues of gemm_int8_sm90_epilogue.cuh.
#pragma once

#include "kernels/cuda/gemm_int8_sm90_epilogue.cuh"
#include "kernels/cuda/gemm_sm90_launch.cuh"

namespace switchback::sm90 {

template <int kTileM, int kTileN, int kStages, int kBuffers, Schedule kSchedule>
using Int8Tile = Tile<int8_t, kTileM, kTileN, kStages, kBuffers, kSchedule>;

template <class T, Extra kExtra, bool kColumnScale>
void launch_int8(const GemmInt8& a, const LaunchOptions& options, cudaStream_t stream) {
  const int M = static_cast<int>(a.x.rows()), N = static_cast<int>(a.w.rows()),
            K = static_cast<int>(a.x.cols());
  if (M == 0 || N == 0) return;
  using Epilogue = Int8Epilogue<T, kExtra, kColumnScale>;
  typename Epilogue::Arguments arguments;
  arguments.y_map = piece_map<T>(a.y.data, M, N);
  arguments.extra_map = kExtra == Extra::none ? arguments.y_map : piece_map<T>(a.extra.data, M, N);
  arguments.row_scale = a.row_scale.as<float>();
  arguments.weight_scale = a.weight_scale.as<float>();
  arguments.bias = static_cast<const __nv_bfloat16*>(a.bias.data);
  arguments.gamma = static_cast<const __nv_bfloat16*>(a.gamma.data);
  launch<T, Epilogue>(M, N, K, a.x.data, a.w.data, arguments, options, stream);
}

// The bare sums (M, N) in s32, for tests of exactness.
template <class T>
void launch_int8_sums(int* sums, const GemmInt8& a, const LaunchOptions& options, cudaStream_t stream) {
  launch<T, BareSums<T>>(static_cast<int>(a.x.rows()), static_cast<int>(a.w.rows()),
                         static_cast<int>(a.x.cols()), a.x.data, a.w.data, {sums}, options, stream);
}

}  // namespace switchback::sm90
