// pooling.cpp: one token's row stands for the whole sample: the class token, or the end-of-text token.
//   y[b] = x[b, place[b]];   dx[b, place[b]] = dy[b], other rows 0.   x (B, T, C), y (B, C), place (B) i32
//       optional
#include "kernels/cpu/access.h"

namespace switchback {
namespace {

void check_values(const char* op, const CView& place, const CView& x) {
  for (int64_t b = 0; b < place.size(); ++b)
    CHECK(place.as<int32_t>()[b] >= 0 && place.as<int32_t>()[b] < x.shape[1], op, ": place ",
          place.as<int32_t>()[b], " of sample ", b, ", x is ", x.shape);
}

}  // namespace

void CpuKernels::pool_forward(View y, CView x, CView place) {
  const char* op = "pool_forward";
  const SequenceSizes s = Require::pool_forward(op, y, x, place);
  if (place) check_values(op, place, x);
  visit_float(x.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    const T* in = x.as<T>();
    const int32_t* at = place.as<int32_t>();
    T* out = y.as<T>();
    for_rows(s.samples, s.width, [=](int64_t b) {
      std::copy_n(in + (b * s.tokens + (at ? at[b] : 0)) * s.width, s.width, out + b * s.width);
    });
  });
}

void CpuKernels::pool_backward(Sink dx, CView dy, CView place) {
  if (!dx) return;
  const char* op = "pool_backward";
  const SequenceSizes s = Require::pool_backward(op, dx, dy, place);
  if (place) check_values(op, place, dx.to);
  visit_float(dy.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    using R = Statistics<T>;
    const T* gradient = dy.as<T>();
    const int32_t* at = place.as<int32_t>();
    write_to<T>(dx, op, [&](auto out) {
      for_rows(s.samples, s.tokens * s.width, [=, accumulate = dx.accumulate](int64_t b) {
        const auto sample = out + b * s.tokens * s.width;
        const int64_t row = (at ? at[b] : 0) * s.width;
        if (!accumulate) {
#pragma omp simd
          for (int64_t i = 0; i < s.tokens * s.width; ++i) sample.put(i, R(0));
        }
        for (int64_t c = 0; c < s.width; ++c) sample.put(row + c, static_cast<R>(gradient[b * s.width + c]));
      });
    });
  });
}

}  // namespace switchback
