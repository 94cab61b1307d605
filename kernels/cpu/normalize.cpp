// normalize.cpp: the features of both towers on the unit sphere.
//   y = x inverse_norm, inverse_norm = 1/max(|x|₂, 1e-12);   dx = inverse_norm (dy - y (y·dy))
// x, dx (B, E) of T; y, dy (B, E) and inverse_norm (B) in R: logits and losses are computed in R.
#include <cmath>

#include "kernels/cpu/access.h"

namespace switchback {

void CpuKernels::l2_normalize_forward(View y, View inverse_norm, CView x) {
  const char* op = "l2_normalize_forward";
  const auto [rows, width] = Require::l2_normalize_forward(op, y, inverse_norm, x);
  visit_float(x.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    using R = Statistics<T>;
    const T* in = x.as<T>();
    R *out = y.as<R>(), *inverse = inverse_norm.as<R>();
    for_rows(rows, width, [=](int64_t row) {
      const T* a = in + row * width;
      R squares = 0;
#pragma omp simd reduction(+ : squares)
      for (int64_t i = 0; i < width; ++i) squares += static_cast<R>(a[i]) * static_cast<R>(a[i]);
      const R norm = std::sqrt(squares);
      const R factor = R(1) / (norm < R(1e-12) ? R(1e-12) : norm);
      inverse[row] = factor;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) out[row * width + i] = static_cast<R>(a[i]) * factor;
    });
  });
}

void CpuKernels::l2_normalize_backward(Sink dx, CView dy, CView y, CView inverse_norm) {
  if (!dx) return;
  const char* op = "l2_normalize_backward";
  const auto [rows, width] = Require::l2_normalize_backward(op, dx, dy, y, inverse_norm);
  visit_float(dx.to.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    using R = Statistics<T>;
    const R *gradient = dy.as<R>(), *unit = y.as<R>(), *inverse = inverse_norm.as<R>();
    write_to<T>(dx, op, [&](auto out) {
      for_rows(rows, width, [=](int64_t row) {
        const R *g = gradient + row * width, *u = unit + row * width;
        R dot = 0;
#pragma omp simd reduction(+ : dot)
        for (int64_t i = 0; i < width; ++i) dot += g[i] * u[i];
        const R factor = inverse[row];
        const auto to = out + row * width;
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) to.put(i, factor * (g[i] - u[i] * dot));
      });
    });
  });
}

}  // namespace switchback
