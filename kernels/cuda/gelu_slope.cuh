// gelu_slope.cuh: the backward pass of GELU as one sweep over its elements, for gelu.cu and linear_gelu.cu.
//   dx = dy y'(x)      dy as it lies there, in T or f32; x in T
// bf16 by gelu.cuh, f32 by math.cuh.
#pragma once

#include "kernels/cuda/gelu.cuh"
#include "kernels/cuda/math.cuh"
#include "kernels/cuda/vec.cuh"

namespace switchback::cuda {

template <class Dy, class T>
struct TimesGeluSlope {
  const Dy* dy;
  const T* x;
  bool exact;
  __device__ void operator()(float (&dx)[elements_of_thread], int64_t i, int64_t valid) const {
    float at[elements_of_thread];
    load(at, x + i, valid);
    load(dx, dy + i, valid);
    if constexpr (std::is_same_v<T, bf16>) {
      float y[elements_of_thread];
      gelu_and_times_slope(y, dx, at, exact);
    } else {
#pragma unroll
      for (int e = 0; e < elements_of_thread; ++e) dx[e] *= gelu_slope(at[e], exact);
    }
  }
};

}  // namespace switchback::cuda
