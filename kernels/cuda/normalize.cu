// normalize.cu: the features of both towers on the unit sphere. One warp a row.
//   y = x inverse_norm, inverse_norm = 1/max(|x|₂, 1e-12);   dx = inverse_norm (dy - y (y·dy))
// x, dx (B, E) of T; y, dy (B, E) and inverse_norm (B) f32: logits and losses are computed in f32.
#include "kernels/cuda/reduce.cuh"

namespace switchback::cuda {
namespace {

constexpr int group = 4, stride = 32 * group, warps_of_block = 4;

template <class T>
__global__ void __launch_bounds__(32 * warps_of_block)
forward(float* y, float* inverse_norm, const T* x, int64_t rows, int width) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * warps_of_block + threadIdx.x / 32;
  if (row >= rows) return;
  const T* from = x + row * width;
  const int first = threadIdx.x % 32 * group;
  float squares = 0, v[group];
  for (int column = first; column < width; column += stride) {
    load(v, from + column, width - column);
#pragma unroll
    for (int e = 0; e < group; ++e) squares += v[e] * v[e];
  }
  const float norm = sqrtf(warp_sum(squares));
  const float factor = 1.0f / (norm < 1e-12f ? 1e-12f : norm);  // NaN stays NaN
  if (threadIdx.x % 32 == 0) inverse_norm[row] = factor;
  const Out<float> to{y + row * width, false};
  for (int column = first; column < width; column += stride) {
    load(v, from + column, width - column);
#pragma unroll
    for (int e = 0; e < group; ++e) v[e] *= factor;
    to.store(column, v, width - column);
  }
}

template <class To>
__global__ void __launch_bounds__(32 * warps_of_block)
backward(Out<To> dx, const float* dy, const float* y, const float* inverse_norm, int64_t rows, int width) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * warps_of_block + threadIdx.x / 32;
  if (row >= rows) return;
  const float *gradient = dy + row * width, *unit = y + row * width;
  const int first = threadIdx.x % 32 * group;
  float sum = 0, g[group], u[group];
  for (int column = first; column < width; column += stride) {
    load(g, gradient + column, width - column);
    load(u, unit + column, width - column);
#pragma unroll
    for (int e = 0; e < group; ++e) sum += g[e] * u[e];
  }
  const float dot = warp_sum(sum), factor = inverse_norm[row];
  for (int column = first; column < width; column += stride) {
    load(g, gradient + column, width - column);
    load(u, unit + column, width - column);
#pragma unroll
    for (int e = 0; e < group; ++e) g[e] = factor * (g[e] - u[e] * dot);
    dx.store(row * width + column, g, width - column);
  }
}

}  // namespace

void CudaKernels::l2_normalize_forward(View y, View inverse_norm, CView x) {
  const char* op = "l2_normalize_forward";
  const auto [rows, width] = Require::l2_normalize_forward(op, y, inverse_norm, x);
  if (rows == 0) return;
  visit(x.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    forward<<<blocks_for(rows, warps_of_block), 32 * warps_of_block, 0, stream_>>>(
        data<float>(y), data<float>(inverse_norm), data<T>(x), rows, static_cast<int>(width));
    check_launch(op);
  });
}

void CudaKernels::l2_normalize_backward(Sink dx, CView dy, CView y, CView inverse_norm) {
  if (!dx || y.size() == 0) return;
  const char* op = "l2_normalize_backward";
  const auto [rows, width] = Require::l2_normalize_backward(op, dx, dy, y, inverse_norm);
  visit(dx.to.dtype, op, [&](auto tag) {
    backward<<<blocks_for(rows, warps_of_block), 32 * warps_of_block, 0, stream_>>>(
        out_of<decltype(tag)>(dx), data<float>(dy), data<float>(y), data<float>(inverse_norm), rows,
        static_cast<int>(width));
    check_launch(op);
  });
}

}  // namespace switchback::cuda
