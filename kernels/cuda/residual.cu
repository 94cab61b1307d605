// residual.cu: y = x + gamma branch, with or without layer-scale.
//   dbranch = gamma dy,   dgamma = Σ_rows dy branch.   x, y, branch (M, C), gamma (C)
// Rows of real models take layer-scale's backward pass in one sweep (layernorm_rows.cuh).
#include "kernels/cuda/layernorm_rows.cuh"
#include "kernels/cuda/reduce.cuh"

namespace switchback::cuda {
namespace {

template <class T>
struct Forward {
  const T *x, *branch, *gamma;
  int width;
  __device__ void operator()(float (&y)[elements_of_thread], int64_t row, int column, int valid) const {
    float added[elements_of_thread], scale[elements_of_thread];
    load(y, x + row * width + column, valid);
    load(added, branch + row * width + column, valid);
    if (gamma) {
      load(scale, gamma + column, valid);
#pragma unroll
      for (int e = 0; e < elements_of_thread; ++e) y[e] = fmaf(scale[e], added[e], y[e]);
    } else {
#pragma unroll
      for (int e = 0; e < elements_of_thread; ++e) y[e] += added[e];
    }
  }
};

template <class T>
struct Backward {
  const T *dy, *gamma;
  int width;
  __device__ void operator()(float (&dbranch)[elements_of_thread], int64_t row, int column, int valid) const {
    load(dbranch, dy + row * width + column, valid);
    if (!gamma) return;
    float scale[elements_of_thread];
    load(scale, gamma + column, valid);
#pragma unroll
    for (int e = 0; e < elements_of_thread; ++e) dbranch[e] *= scale[e];
  }
};

template <class T>
struct GammaGradient {
  const T *dy, *branch;
  int width;
  __device__ void operator()(float (&sum)[1][sum_columns], int64_t row, int column, int valid) const {
    float added[sum_columns];
    load(sum[0], dy + row * width + column, valid);
    load(added, branch + row * width + column, valid);
#pragma unroll
    for (int c = 0; c < sum_columns; ++c) sum[0][c] *= added[c];
  }
};

}  // namespace

void CudaKernels::residual_forward(View y, CView x, CView branch, CView gamma) {
  const char* op = "residual_forward";
  const auto [rows, width] = Require::residual_forward(op, y, x, branch, gamma);
  visit(x.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    // Without gamma rows do not matter: one row of all elements, if an int can count it.
    const bool flat = !gamma && x.size() < INT32_MAX / 2;
    const int64_t height = flat ? 1 : rows, length = flat ? x.size() : width;
    const Forward<T> f{data<T>(x), data<T>(branch), data<T>(gamma), static_cast<int>(length)};
    for_rows(op, out_of<T>(y), height, length, f, stream_);
  });
}

void CudaKernels::residual_backward(Sink dbranch, Sink dgamma, CView dy, CView branch, CView gamma) {
  const char* op = "residual_backward";
  const auto [rows, width] = Require::residual_backward(op, dbranch, dgamma, dy, branch, gamma);
  if (scale_rows_backward(*this, dbranch, dgamma, dy, branch, gamma)) return;
  visit(dy.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    const int columns = static_cast<int>(width);
    if (dgamma)
      sum_rows<1>(op, *this, {dgamma}, rows, width, GammaGradient<T>{data<T>(dy), data<T>(branch), columns});
    visit_sink<T>(dbranch, op, [&](auto to) {
      for_rows(op, out_of<decltype(to)>(dbranch), rows, width,
               Backward<T>{data<T>(dy), data<T>(gamma), columns}, stream_);
    });
  });
}

}  // namespace switchback::cuda
