// layernorm.cu: y = gain x̂ + bias,  x̂ = (x - mean) rstd,  rstd = 1/sqrt(var + epsilon),  over the columns.
//
// Rows of real models go through layernorm_rows.cuh. Here is the way for all others:
// one warp a row, which stays in registers between the passes over it (mean, variance, result) up to
// 256 `held` columns; what is wider is read again from the cache. dgain and dbias are a sweep of their own.
// x, y, dy (M, C), mean, rstd (M) f32, gain, bias (C).
#include "kernels/cuda/layernorm_rows.cuh"
#include "kernels/cuda/reduce.cuh"

namespace switchback::cuda {
namespace {

constexpr int group = 8;            // columns of a lane at a time
constexpr int stride = 32 * group;  // columns of a warp at a time
constexpr int held = 7;             // groups of a lane that stay in registers: 1792 columns
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
  for_groups(kept, from, width, [&](const float(&v)[group], int, int) {
#pragma unroll
    for (int e = 0; e < group; ++e) sum += v[e];  // what lies beyond the row is 0
  });
  const float m = warp_sum(sum) / static_cast<float>(width);
  float squares = 0;
  for_groups(kept, from, width, [&](const float(&v)[group], int, int left) {
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
  for_groups(kept, from, width, [&](const float(&v)[group], int column, int left) {
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
  const auto g_of = [&](float(&g)[group], int column, int left) {
    float scale[group];
    load(g, gradient + column, left);
    load(scale, gain + column, left);
#pragma unroll
    for (int e = 0; e < group; ++e) g[e] *= scale[e];
  };
  for_groups(kept, from, width, [&](const float(&v)[group], int column, int left) {
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
  for_groups(kept, from, width, [&](const float(&v)[group], int column, int left) {
    float g[group];
    g_of(g, column, left);
#pragma unroll
    for (int e = 0; e < group; ++e) g[e] = r * (g[e] - mean_g - (v[e] - m) * r * mean_gx);
    dx.store(row * width + column, g, left);
  });
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
  const auto [rows, width] = Require::layernorm_forward(op, y, mean, rstd, x, gain, bias);
  if (rows == 0 || normalize_rows(*this, {}, y, mean, rstd, x, {}, {}, gain, bias, epsilon)) return;
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
  const auto [rows, width] = Require::layernorm_backward(op, dx, dgain, dbias, dy, x, mean, rstd, gain);
  if (dx && normalize_rows_backward(*this, dx.to, {}, {}, {}, dgain, dbias,
                                    dx.accumulate ? CView(dx.to) : CView{}, dy, x, mean, rstd, gain, {}, {}))
    return;
  visit(x.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    const int columns = static_cast<int>(width);
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
