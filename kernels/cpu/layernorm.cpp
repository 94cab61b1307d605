// layernorm.cpp: y = gain x̂ + bias,  x̂ = (x - mean) rstd,  rstd = 1/sqrt(var + epsilon),  over the
// C columns of a row.
//
// Variance in a second pass over the row (it is in the cache): no cancellation. The backward pass takes one
// sweep over the rows: dx, and the partial sums of dgain and dbias in chunks of rows that do not depend on
// the threads. x, y, dy (M, C), mean, rstd (M) in R, gain, bias (C).
#include <cmath>

#include "kernels/cpu/access.h"

namespace switchback {

void CpuKernels::layernorm_forward(View y, View mean, View rstd, CView x, CView gain, CView bias,
                                   double epsilon) {
  const char* op = "layernorm_forward";
  const auto [rows, width] = Require::layernorm_forward(op, y, mean, rstd, x, gain, bias);
  visit_float(x.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    using R = Statistics<T>;
    const T *in = x.as<T>(), *scale = gain.as<T>(), *shift = bias.as<T>();
    T* out = y.as<T>();
    R *means = mean.as<R>(), *rstds = rstd.as<R>();
    for_rows(rows, width, [=](int64_t row) {
      const T* a = in + row * width;
      T* b = out + row * width;
      R sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < width; ++i) sum += static_cast<R>(a[i]);
      const R m = sum / static_cast<R>(width);
      R squares = 0;
#pragma omp simd reduction(+ : squares)
      for (int64_t i = 0; i < width; ++i) {
        const R d = static_cast<R>(a[i]) - m;
        squares += d * d;
      }
      const R r = R(1) / std::sqrt(squares / static_cast<R>(width) + static_cast<R>(epsilon));
      means[row] = m;
      rstds[row] = r;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i)
        b[i] = static_cast<T>((static_cast<R>(a[i]) - m) * r * static_cast<R>(scale[i]) +
                              static_cast<R>(shift[i]));
    });
  });
}

void CpuKernels::layernorm_backward(Sink dx, Sink dgain, Sink dbias, CView dy, CView x, CView mean,
                                    CView rstd, CView gain) {
  const char* op = "layernorm_backward";
  const auto [rows, width] = Require::layernorm_backward(op, dx, dgain, dbias, dy, x, mean, rstd, gain);
  visit_float(x.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    using R = Statistics<T>;
    const T *in = x.as<T>(), *gradient = dy.as<T>(), *scale = gain.as<T>();
    const R *means = mean.as<R>(), *rstds = rstd.as<R>();

    // g = dy gain:  dx = rstd (g - mean(g) - x̂ mean(g x̂))
    const auto row_to_dx = [=](auto out, int64_t row) {
      const T *a = in + row * width, *d = gradient + row * width;
      const R m = means[row], r = rstds[row];
      R sum_g = 0, sum_gx = 0;
#pragma omp simd reduction(+ : sum_g, sum_gx)
      for (int64_t i = 0; i < width; ++i) {
        const R g = static_cast<R>(d[i]) * static_cast<R>(scale[i]);
        sum_g += g;
        sum_gx += g * ((static_cast<R>(a[i]) - m) * r);
      }
      const R mean_g = sum_g / static_cast<R>(width), mean_gx = sum_gx / static_cast<R>(width);
      const auto to = out + row * width;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        const R g = static_cast<R>(d[i]) * static_cast<R>(scale[i]);
        to.put(i, r * (g - mean_g - (static_cast<R>(a[i]) - m) * r * mean_gx));
      }
    };
    const auto row_to_sums = [=](R* gain_sum, R* bias_sum, int64_t row) {
      const T *a = in + row * width, *d = gradient + row * width;
      const R m = means[row], r = rstds[row];
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        const R g = static_cast<R>(d[i]);
        gain_sum[i] += g * ((static_cast<R>(a[i]) - m) * r);
        bias_sum[i] += g;
      }
    };

    if (!dgain && !dbias) {
      write_to<T>(dx, op,
                  [&](auto out) { for_rows(rows, width, [=](int64_t row) { row_to_dx(out, row); }); });
      return;
    }
    // Sums (2, C): dgain, then dbias.
    Tensor sums;
    if (dx) {
      write_to<T>(dx, op, [&](auto out) {
        sums = sum_rows<R>(rows, 2 * width, [=](int64_t from, int64_t to, R* partial) {
          for (int64_t row = from; row < to; ++row) {
            row_to_sums(partial, partial + width, row);  // first: dx may lie where dy does
            row_to_dx(out, row);
          }
        });
      });
    } else {
      sums = sum_rows<R>(rows, 2 * width, [=](int64_t from, int64_t to, R* partial) {
        for (int64_t row = from; row < to; ++row) row_to_sums(partial, partial + width, row);
      });
    }
    const R* result = static_cast<const R*>(sums.data());
    write_all<T>(dgain, op, result);
    write_all<T>(dbias, op, result + width);
  });
}

}  // namespace switchback
