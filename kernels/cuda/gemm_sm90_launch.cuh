// gemm_sm90_launch.cuh: the host's side of gemm_sm90.cuh: tensor maps, the grid, the launch.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/gemm_sm90.cuh"
#include "kernels/cuda/ptx/tensor_map.cuh"
#include "kernels/cuda/spared.h"

namespace switchback::sm90 {

using cuda::multiprocessor_count;

struct LaunchOptions {
  int64_t band_bytes = 16 << 20;  // of w that the blocks keep returning to: a third of L2
  int group = 0;                 // column units of a band; 0: as band_bytes says, but at least least_group
  int stagger = 3;
  int whole = -1, parts = 1;     // Walk; -1: all tiles are whole
  int left = 0;                  // multiprocessors left to a kernel beside this one
  bool overlap_previous = true;  // start while the stream's previous kernel ends (dependent_launch.cuh)
};

// Where K is so long that no band stays in L2, blocks share what they read at the same time: least where the
// tiles they work on are a square together.
constexpr int64_t least_group = 8;

// How much of the walked work is not padding: blocks walk ceil(units / clusters) units each, full or not.
template <class T>
double useful_part(double M, double N) {
  const double clusters = multiprocessor_count() / T::kClusterSize;
  const double units = std::ceil(M / (2 * T::kTileM)) * std::ceil(N / T::kTileN);
  return M * N / (std::ceil(units / clusters) * clusters * 2 * T::kTileM * T::kTileN);
}

// The map of a bf16 matrix (M, N) that a consumer warp writes or reads in pieces.
template <class T>
CUtensorMap piece_map(const void* matrix, int M, int N) {
  return ptx::make_tensor_map(matrix, M, N, 2, 16, T::kChunk,
                              T::kChunk == 64 ? ptx::Swizzle::bytes_128 : ptx::Swizzle::bytes_64);
}

template <class T>
Walk walk_of(int M, int N, int K, const LaunchOptions& options) {
  const auto ceil_div = [](int n, int d) { return (n + d - 1) / d; };
  Walk walk;
  walk.M = M, walk.N = N, walk.K = K;
  walk.row_units = ceil_div(M, T::kTileM * 2);
  walk.column_units = ceil_div(N, T::kTileN);
  const int64_t unit_bytes = int64_t{K} * T::kTileN * sizeof(typename T::Element);
  const int64_t group = options.group > 0 ? options.group
                                          : std::max(least_group, options.band_bytes / unit_bytes);
  walk.group = static_cast<int>(std::min<int64_t>(group, walk.column_units));
  walk.k_blocks = ceil_div(K, T::kBlockK);
  walk.whole = options.whole < 0 ? walk.tiles() : options.whole;
  walk.parts = options.parts;
  walk.part_blocks = ceil_div(walk.k_blocks, options.parts);
  walk.stagger = options.stagger < T::kStages ? options.stagger : T::kStages - 1;
  return walk;
}

// x (M, K) and w (N, K), or x (K, M) and w (K, N) where the tile says Major::mn. Rows are multiples of 16
// bytes.
template <class T, class Epilogue>
void launch(int M, int N, int K, const void* x, const void* w, const typename Epilogue::Arguments& arguments,
            const LaunchOptions& options, cudaStream_t stream) {
  if (M == 0 || N == 0) return;
  constexpr size_t kSharedBytes = sizeof(SharedMemory<T>);
  static_assert(kSharedBytes <= 232448, "a block has 227 KiB of shared memory");
  auto* kernel = gemm_kernel<T, Epilogue>;
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

  const Walk walk = walk_of<T>(M, N, K, options);
  CHECK(takes_parts<Epilogue> || walk.whole == walk.tiles(), "an epilogue that knows whole tiles only");
  using ptx::Swizzle;
  constexpr int kElement = sizeof(typename T::Element);
  const CUtensorMap x_map =
      T::kMajorX == Major::k
          ? ptx::make_tensor_map(x, M, K, kElement, T::kTileM, T::kBlockK, Swizzle::bytes_128)
          : ptx::make_tensor_map(x, K, M, kElement, T::kBlockK, 64, Swizzle::bytes_128);
  const CUtensorMap w_map =
      T::kMajorW == Major::k
          ? ptx::make_tensor_map(w, N, K, kElement, T::kTileN / 2, T::kBlockK, Swizzle::bytes_128)
          : ptx::make_tensor_map(w, K, N, kElement, T::kBlockK / 2, 64, Swizzle::bytes_128);

  const int left = std::max(options.left, cuda::spared_multiprocessors());
  const int spared = (left + T::kClusterSize - 1) / T::kClusterSize;
  config.gridDim = std::min(walk.units(), std::max(1, clusters - spared)) * T::kClusterSize;
  CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, x_map, w_map, arguments, walk));
}

}  // namespace switchback::sm90
