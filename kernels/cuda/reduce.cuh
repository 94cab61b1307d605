// reduce.cuh: sums in a fixed order: within a warp, within a block, and over the rows of a matrix.
//
// Sums over rows go in two steps. Rows are cut into chunks that depend on their number alone; step one writes
// one partial sum a chunk and column, step two adds the partials. Nothing is added atomically: the same bits
// every time.
#pragma once

#include "kernels/cuda/vec.cuh"

namespace switchback::cuda {

constexpr unsigned all_lanes = 0xffffffffu;

template <class R>
__device__ __forceinline__ R warp_sum(R value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(all_lanes, value, step);
  return value;
}
__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(all_lanes, value, step));
  return value;
}

// The sum over a block of `threads` threads, given to all of them.
template <int threads, class R>
__device__ __forceinline__ R block_sum(R value) {
  __shared__ R of_warp[threads / 32];
  value = warp_sum(value);
  __syncthreads();  // an earlier call may still be reading
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  R sum = of_warp[0];
#pragma unroll
  for (int w = 1; w < threads / 32; ++w) sum += of_warp[w];
  return sum;
}

// ---- over rows --------------------------------------------------------------------------------------------
constexpr int sum_lanes = 8;    // rows of a block that are summed side by side
constexpr int sum_columns = 4;  // columns of a thread

// A result of either type, for results so small that the branch costs nothing.
struct AnyOut {
  void* to;
  bool is_bf16, accumulate;
  __device__ void put(int64_t at, float value) const {
    if (is_bf16)
      Out<bf16>{static_cast<bf16*>(to), accumulate}.put(at, value);
    else
      Out<float>{static_cast<float*>(to), accumulate}.put(at, value);
  }
};
inline AnyOut any_out(const Sink& sink) {
  return {sink.to.data, sink.to.dtype == DType::bf16, sink.accumulate};
}

struct RowChunks {
  int64_t rows, chunk, count;
};
inline RowChunks row_chunks(int64_t rows) {
  const int64_t wanted = std::clamp<int64_t>(rows / 64, 1, 128), chunk = (rows + wanted - 1) / wanted;
  return {rows, chunk, chunk ? (rows + chunk - 1) / chunk : 0};
}

// partials (chunks, outputs, width):  Σ over the rows of a chunk of f(row, column)
// f(values[outputs][4], row, column, columns left): what is added
template <int outputs, class F>
__global__ void __launch_bounds__(32 * sum_lanes)
    chunk_sums(float* partials, int64_t rows, int width, int64_t chunk, F f) {
  const int column = (blockIdx.x * 32 + threadIdx.x) * sum_columns;
  const int64_t from = blockIdx.y * chunk, to = min(rows, from + chunk);
  float sums[outputs][sum_columns] = {};
  if (column < width) {
    for (int64_t row = from + threadIdx.y; row < to; row += sum_lanes) {
      float values[outputs][sum_columns];
      f(values, row, column, width - column);
#pragma unroll
      for (int o = 0; o < outputs; ++o)
#pragma unroll
        for (int c = 0; c < sum_columns; ++c) sums[o][c] += values[o][c];
    }
  }
  __shared__ float shared[sum_lanes][outputs][32 * sum_columns];
#pragma unroll
  for (int o = 0; o < outputs; ++o)
#pragma unroll
    for (int c = 0; c < sum_columns; ++c) shared[threadIdx.y][o][threadIdx.x * sum_columns + c] = sums[o][c];
  __syncthreads();
  for (int i = threadIdx.y * 32 + threadIdx.x; i < outputs * 32 * sum_columns; i += 32 * sum_lanes) {
    const int o = i / (32 * sum_columns), c = i % (32 * sum_columns), at = blockIdx.x * 32 * sum_columns + c;
    if (at >= width) continue;
    float sum = shared[0][o][c];
#pragma unroll
    for (int lane = 1; lane < sum_lanes; ++lane) sum += shared[lane][o][c];
    partials[(static_cast<int64_t>(blockIdx.y) * outputs + o) * width + at] = sum;
  }
}

// outs[o][c] = Σ_i partials[i, o, c]:  partials (count, outputs, width); row o of the grid makes output o
constexpr int most_sums = 3, partial_lanes = 32;
struct SumsOut {
  AnyOut to[most_sums];
};
static __global__ void __launch_bounds__(32 * partial_lanes)
    add_partials_in_order(SumsOut outs, const float* partials, int64_t count, int64_t outputs, int width) {
  const int column = blockIdx.x * 32 + threadIdx.x;
  const AnyOut out = outs.to[blockIdx.y];
  if (!out.to) return;
  const float* from = partials + blockIdx.y * width + column;
  float sum = 0;
  if (column < width) {
#pragma unroll 8
    for (int64_t i = threadIdx.y; i < count; i += partial_lanes) sum += from[i * outputs * width];
  }
  __shared__ float shared[partial_lanes][32];
  shared[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || column >= width) return;
#pragma unroll
  for (int lane = 1; lane < partial_lanes; ++lane) sum += shared[lane][threadIdx.x];
  out.put(column, sum);
}
// sinks[o] (width) = Σ_i partials[i, o];  partials (count, outputs, width). Empty sinks, and those beyond
// `outputs`, are not written. On the kernels' own stream unless another is given.
template <int count_of_sinks>
void add_partials(const char* op, const CudaKernels& k, const Sink (&sinks)[count_of_sinks],
                  const float* partials, int64_t count, int64_t outputs, int64_t width,
                  cudaStream_t stream = nullptr) {
  static_assert(count_of_sinks <= most_sums);
  SumsOut outs{};
  for (int64_t o = 0; o < std::min<int64_t>(outputs, count_of_sinks); ++o) outs.to[o] = any_out(sinks[o]);
  const dim3 grid(blocks_for(width, 32), static_cast<unsigned>(outputs));
  add_partials_in_order<<<grid, dim3(32, partial_lanes), 0, stream ? stream : k.stream()>>>(
      outs, partials, count, outputs, static_cast<int>(width));
  check_launch(op);
}

// sinks[o] (width) = Σ_rows f, for `outputs` sums in one sweep; empty sinks are not written.
template <int outputs, class F>
void sum_rows(const char* op, const CudaKernels& k, const Sink (&sinks)[outputs], int64_t rows, int64_t width,
              const F& f) {
  if (width == 0) return;
  const RowChunks chunks = row_chunks(rows);
  const Tensor partials = k.scratch({std::max<int64_t>(1, chunks.count), outputs, width});
  float* sums = data<float>(partials);
  if (rows > 0) {
    const dim3 grid(blocks_for(width, 32 * sum_columns), static_cast<unsigned>(chunks.count));
    chunk_sums<outputs>
        <<<grid, dim3(32, sum_lanes), 0, k.stream()>>>(sums, rows, static_cast<int>(width), chunks.chunk, f);
    check_launch(op);
  }
  add_partials(op, k, sinks, sums, chunks.count, outputs, width);
}

}  // namespace switchback::cuda
