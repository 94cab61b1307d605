// residual.cpp: y = x + gamma branch, with or without layer-scale.
//   dbranch = gamma dy,   dgamma = Σ_rows dy branch.   x, y, branch (M, C), gamma (C)
#include "kernels/cpu/access.h"

namespace switchback {

void CpuKernels::residual_forward(View y, CView x, CView branch, CView gamma) {
  const char* op = "residual_forward";
  const auto [rows, width] = Require::residual_forward(op, y, x, branch, gamma);
  visit_float(x.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    using R = Statistics<T>;
    const T *in = x.as<T>(), *added = branch.as<T>(), *scale = gamma.as<T>();
    T* out = y.as<T>();
    if (!scale) {
      for_elements(x.size(), [=](int64_t i) {
        out[i] = static_cast<T>(static_cast<R>(in[i]) + static_cast<R>(added[i]));
      });
      return;
    }
    for_rows(rows, width, [=](int64_t row) {
      const int64_t at = row * width;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i)
        out[at + i] = static_cast<T>(static_cast<R>(in[at + i]) +
                                     static_cast<R>(scale[i]) * static_cast<R>(added[at + i]));
    });
  });
}

void CpuKernels::residual_backward(Sink dbranch, Sink dgamma, CView dy, CView branch, CView gamma) {
  const char* op = "residual_backward";
  const auto [rows, width] = Require::residual_backward(op, dbranch, dgamma, dy, branch, gamma);
  visit_float(dy.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    using R = Statistics<T>;
    const T *gradient = dy.as<T>(), *added = branch.as<T>(), *scale = gamma.as<T>();
    if (dgamma) {
      const Tensor sums = sum_rows<R>(rows, width, [=](int64_t from, int64_t to, R* partial) {
        for (int64_t row = from; row < to; ++row) {
#pragma omp simd
          for (int64_t i = 0; i < width; ++i)
            partial[i] += static_cast<R>(gradient[row * width + i]) * static_cast<R>(added[row * width + i]);
        }
      });
      write_all<T>(dgamma, op, static_cast<const R*>(sums.data()));
    }
    write_to<T>(dbranch, op, [&](auto out) {
      if (!scale) {
        for_elements(dy.size(), [=](int64_t i) { out.put(i, static_cast<R>(gradient[i])); });
        return;
      }
      for_rows(rows, width, [=](int64_t row) {
        const int64_t at = row * width;
#pragma omp simd
        for (int64_t i = 0; i < width; ++i)
          out.put(at + i, static_cast<R>(scale[i]) * static_cast<R>(gradient[at + i]));
      });
    });
  });
}

}  // namespace switchback
