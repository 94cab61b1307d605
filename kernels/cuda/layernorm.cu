// layernorm.cu: y = gain x̂ + bias,  x̂ = (x - mean) rstd,  rstd = 1/sqrt(var + epsilon),  over the C columns of a row.
//
// One warp a row. The row stays in registers between the passes over it (mean, variance, result) up to
// 256 `held` columns, which covers every CLIP (1664); what is wider is read again from the cache.
// Backward: dx by the same scheme, and in the same sweep each warp adds its rows' dgain and dbias into sums
// of its own in shared memory; a block's warps, then the blocks, are added in order. Without dx, or for rows
// too wide for that, the sums are a sweep of their own (reduce.cuh).
// x, y, dy (M, C), mean, rstd (M) f32, gain, bias (C).
#include <utility>

#include "kernels/cuda/reduce.cuh"

namespace switchback::cuda {
namespace {

constexpr int group = 8;              // columns of a lane at a time
constexpr int stride = 32 * group;    // columns of a warp at a time
constexpr int held = 7;               // groups of a lane that stay in registers: 1792 columns
constexpr int warps_of_block = 4;

// Calls f(values, column, columns left) for each group of this lane's columns: from registers first, then
// from memory.
template <class T, class F>
__device__ __forceinline__ void for_groups(const float (&kept)[held][group], const T* row, int width,
                                           const F& f) {
  const int first = threadIdx.x % 32 * group;
#pragma unroll
  for (int g = 0; g < held; ++g)
    if (g * stride < width) f(kept[g], first + g * stride, width - first - g * stride);
  for (int column = first + held * stride; column < width; column += stride) {
    float values[group];
    load(values, row + column, width - column);
    f(values, column, width - column);
  }
}
template <class T>
__device__ __forceinline__ void keep(float (&kept)[held][group], const T* row, int width) {
  const int first = threadIdx.x % 32 * group;
#pragma unroll
  for (int g = 0; g < held; ++g)
    if (g * stride < width) load(kept[g], row + first + g * stride, width - first - g * stride);
}

template <class T>
__global__ void __launch_bounds__(32 * warps_of_block)
    forward(T* y, float* mean, float* rstd, const T* x, const T* gain, const T* bias, int64_t rows, int width,
            float epsilon) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * warps_of_block + threadIdx.x / 32;
  if (row >= rows) return;
  const T* from = x + row * width;
  float kept[held][group];
  keep(kept, from, width);
  float sum = 0;
  for_groups(kept, from, width, [&](const float (&v)[group], int, int) {
#pragma unroll
    for (int e = 0; e < group; ++e) sum += v[e];  // what lies beyond the row is 0
  });
  const float m = warp_sum(sum) / static_cast<float>(width);
  float squares = 0;
  for_groups(kept, from, width, [&](const float (&v)[group], int, int left) {
#pragma unroll
    for (int e = 0; e < group; ++e)
      if (e < left) squares += (v[e] - m) * (v[e] - m);
  });
  const float r = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(width) + epsilon);
  if (threadIdx.x % 32 == 0) {
    mean[row] = m;
    rstd[row] = r;
  }
  const Out<T> to{y + row * width, false};
  for_groups(kept, from, width, [&](const float (&v)[group], int column, int left) {
    float scale[group], result[group];
    load(scale, gain + column, left);
    load(result, bias + column, left);
#pragma unroll
    for (int e = 0; e < group; ++e) result[e] = (v[e] - m) * r * scale[e] + result[e];
    to.store(column, result, left);
  });
}

// g = dy gain:  dx = rstd (g - mean(g) - x̂ mean(g x̂))
template <class T, class To>
__global__ void __launch_bounds__(32 * warps_of_block)
    backward(Out<To> dx, const T* dy, const T* x, const float* mean, const float* rstd, const T* gain,
             int64_t rows, int width) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * warps_of_block + threadIdx.x / 32;
  if (row >= rows) return;
  const T* from = x + row * width;
  const T* gradient = dy + row * width;
  const float m = mean[row], r = rstd[row];
  float kept[held][group];
  keep(kept, from, width);
  float sum_g = 0, sum_gx = 0;
  // dy is read twice: its second reading comes out of the cache, and holding it too would cost half the
  // warps.
  const auto g_of = [&](float (&g)[group], int column, int left) {
    float scale[group];
    load(g, gradient + column, left);
    load(scale, gain + column, left);
#pragma unroll
    for (int e = 0; e < group; ++e) g[e] *= scale[e];
  };
  for_groups(kept, from, width, [&](const float (&v)[group], int column, int left) {
    float g[group];
    g_of(g, column, left);
#pragma unroll
    for (int e = 0; e < group; ++e) {
      sum_g += g[e];
      sum_gx += g[e] * ((v[e] - m) * r);
    }
  });
  const float mean_g = warp_sum(sum_g) / static_cast<float>(width),
              mean_gx = warp_sum(sum_gx) / static_cast<float>(width);
  for_groups(kept, from, width, [&](const float (&v)[group], int column, int left) {
    float g[group];
    g_of(g, column, left);
#pragma unroll
    for (int e = 0; e < group; ++e) g[e] = r * (g[e] - mean_g - (v[e] - m) * r * mean_gx);
    dx.store(row * width + column, g, left);
  });
}

// The same for the rows of a chunk, and partials (chunks, 2, width): Σ dy x̂, Σ dy over the chunk.
template <class T, class To>
__global__ void __launch_bounds__(32 * warps_of_block)
    backward_with_sums(Out<To> dx, float* partials, const T* dy, const T* x, const float* mean,
                       const float* rstd, const T* gain, int64_t rows, int width, int64_t chunk) {
  extern __shared__ float4 shared[];  // (warps, 2, padded width)
  const int padded = (width + group - 1) / group * group, warp = threadIdx.x / 32;
  float* gain_sums = reinterpret_cast<float*>(shared) + warp * 2 * padded;
  float* bias_sums = gain_sums + padded;
  for (int i = threadIdx.x % 32; i < 2 * padded; i += 32) gain_sums[i] = 0;
  __syncwarp();
  const int64_t to = min(rows, (blockIdx.x + 1) * chunk);
  for (int64_t row = blockIdx.x * chunk + warp; row < to; row += warps_of_block) {
    const T* from = x + row * width;
    const T* gradient = dy + row * width;
    const float m = mean[row], r = rstd[row];
    float kept[held][group];
    keep(kept, from, width);
    float sum_g = 0, sum_gx = 0;
    for_groups(kept, from, width, [&](const float (&v)[group], int column, int left) {
      float d[group], scale[group];
      if (left <= 0) return;
      load(d, gradient + column, left);
      load(scale, gain + column, left);
      float4* gains = reinterpret_cast<float4*>(gain_sums + column);
      float4* biases = reinterpret_cast<float4*>(bias_sums + column);
      alignas(16) float to_gain[group], to_bias[group];
#pragma unroll
      for (int q = 0; q < group / 4; ++q) {
        *reinterpret_cast<float4*>(to_gain + 4 * q) = gains[q];
        *reinterpret_cast<float4*>(to_bias + 4 * q) = biases[q];
      }
#pragma unroll
      for (int e = 0; e < group; ++e) {
        const float unit = (v[e] - m) * r, g = d[e] * scale[e];
        to_gain[e] += d[e] * unit;  // beyond the row d is 0
        to_bias[e] += d[e];
        sum_g += g;
        sum_gx += g * unit;
      }
#pragma unroll
      for (int q = 0; q < group / 4; ++q) {
        gains[q] = *reinterpret_cast<float4*>(to_gain + 4 * q);
        biases[q] = *reinterpret_cast<float4*>(to_bias + 4 * q);
      }
    });
    const float mean_g = warp_sum(sum_g) / static_cast<float>(width),
                mean_gx = warp_sum(sum_gx) / static_cast<float>(width);
    for_groups(kept, from, width, [&](const float (&v)[group], int column, int left) {
      float g[group], scale[group];
      load(g, gradient + column, left);
      load(scale, gain + column, left);
#pragma unroll
      for (int e = 0; e < group; ++e) g[e] = r * (g[e] * scale[e] - mean_g - (v[e] - m) * r * mean_gx);
      dx.store(row * width + column, g, left);
    });
  }
  __syncthreads();
  const float* all = reinterpret_cast<const float*>(shared);
  for (int i = threadIdx.x; i < 2 * width; i += 32 * warps_of_block) {
    const int which = i / width, column = i - which * width;
    float sum = all[which * padded + column];
#pragma unroll
    for (int w = 1; w < warps_of_block; ++w) sum += all[(w * 2 + which) * padded + column];
    partials[static_cast<int64_t>(blockIdx.x) * 2 * width + i] = sum;
  }
}

template <class T>
struct GainAndBias {  // dy x̂, dy
  const T *dy, *x;
  const float *mean, *rstd;
  int width;
  __device__ void operator()(float (&sums)[2][sum_columns], int64_t row, int column, int valid) const {
    load(sums[0], x + row * width + column, valid);
    load(sums[1], dy + row * width + column, valid);
    const float m = mean[row], r = rstd[row];
#pragma unroll
    for (int c = 0; c < sum_columns; ++c) sums[0][c] = sums[1][c] * ((sums[0][c] - m) * r);
  }
};

}  // namespace

void CudaKernels::layernorm_forward(View y, View mean, View rstd, CView x, CView gain, CView bias,
                                    double epsilon) {
  const char* op = "layernorm_forward";
  const int64_t rows = x.rows(), width = x.cols();
  check_place(op, "x", x, x.dtype);
  check_matrix(op, "y", y, rows, width, x.dtype);
  check_vector(op, "mean", mean, rows, DType::f32);
  check_vector(op, "rstd", rstd, rows, DType::f32);
  check_vector(op, "gain", gain, width, x.dtype);
  check_vector(op, "bias", bias, width, x.dtype);
  if (rows == 0) return;
  visit(x.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    forward<<<blocks_for(rows, warps_of_block), 32 * warps_of_block, 0, stream_>>>(
        data<T>(y), data<float>(mean), data<float>(rstd), data<T>(x), data<T>(gain), data<T>(bias), rows,
        static_cast<int>(width), static_cast<float>(epsilon));
    check_launch(op);
  });
}

void CudaKernels::layernorm_backward(Sink dx, Sink dgain, Sink dbias, CView dy, CView x, CView mean,
                                     CView rstd, CView gain) {
  const char* op = "layernorm_backward";
  const int64_t rows = x.rows(), width = x.cols();
  check_place(op, "x", x, x.dtype);
  check_matrix(op, "dy", dy, rows, width, x.dtype);
  check_vector(op, "mean", mean, rows, DType::f32);
  check_vector(op, "rstd", rstd, rows, DType::f32);
  check_vector(op, "gain", gain, width, x.dtype);
  check_sink(op, "dx", dx, rows, width, x.dtype);
  check_sink_vector(op, "dgain", dgain, width, x.dtype);
  check_sink_vector(op, "dbias", dbias, width, x.dtype);
  visit(x.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    const int columns = static_cast<int>(width);
    const int64_t padded = (width + group - 1) / group * group,
                  shared_bytes = 2 * warps_of_block * padded * 4;
    if (dx && (dgain || dbias) && rows > 0 && shared_bytes <= 48 * 1024) {
      const int64_t wanted = std::clamp<int64_t>(rows / 32, 1, 512), chunk = (rows + wanted - 1) / wanted;
      const int64_t chunks = (rows + chunk - 1) / chunk;
      const Tensor partials = scratch({chunks, 2, width});
      float* sums = data<float>(partials);
      visit_sink<T>(dx, op, [&](auto to) {
        backward_with_sums<<<blocks_for(chunks, 1), 32 * warps_of_block, static_cast<size_t>(shared_bytes),
                             stream_>>>(out_of<decltype(to)>(dx), sums, data<T>(dy), data<T>(x),
                                        data<float>(mean), data<float>(rstd), data<T>(gain), rows, columns,
                                        chunk);
        check_launch(op);
      });
      for (const auto& [sink, from] : {std::pair(dgain, sums), std::pair(dbias, sums + width)}) {
        if (!sink) continue;
        add_partials<<<blocks_for(width, 32), dim3(32, sum_lanes), 0, stream_>>>(any_out(sink), from, chunks,
                                                                                 2 * width, columns);
        check_launch(op);
      }
      return;
    }
    if (dgain || dbias) {  // first: dx may lie where dy does
      const GainAndBias<T> f{data<T>(dy), data<T>(x), data<float>(mean), data<float>(rstd), columns};
      sum_rows<2>(op, *this, {dgain, dbias}, rows, width, f);
    }
    if (rows == 0) return;
    visit_sink<T>(dx, op, [&](auto to) {
      backward<<<blocks_for(rows, warps_of_block), 32 * warps_of_block, 0, stream_>>>(
          out_of<decltype(to)>(dx), data<T>(dy), data<T>(x), data<float>(mean), data<float>(rstd),
          data<T>(gain), rows, columns);
      check_launch(op);
    });
  });
}

}  // namespace switchback::cuda
