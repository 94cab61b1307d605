// math.cuh: the normal distribution, the logistic function and softplus in f32, branch-free.
#pragma once

#include <cuda_runtime.h>

namespace switchback::cuda {

struct Normal {
  float cdf, density;  // Φ(x), φ(x) = e^(-x²/2)/√(2π)
};

// Φ(-|x|) = erfc(z)/2 with z = |x|/√2, and erfc(z) = t P(t) e^(-z²), t = 1/(1 + 0.33 z): the polynomial of
// the CPU's kernels/cpu/math.h (absolute error of Φ 3e-7); both results want the same exponential.
__device__ __forceinline__ Normal normal(float x) {
  const float z = fabsf(x) * 0.707106781f;
  const float t = __fdividef(1.0f, fmaf(0.33f, z, 1.0f));
  const float e = __expf(-0.5f * x * x);
  float p = -0.13677714f;
  p = fmaf(p, t, 0.46659964f);
  p = fmaf(p, t, -0.362966257f);
  p = fmaf(p, t, 0.420359253f);
  p = fmaf(p, t, 0.0402909747f);
  p = fmaf(p, t, 0.203575906f);
  p = fmaf(p, t, 0.182527472f);
  p = fmaf(p, t, 0.186390072f);
  const float tail = 0.5f * (t * p * e);
  return {x < 0 ? tail : 1.0f - tail, 0.398942280f * e};
}

// 1/(1 + e^-x)
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
// The activation and its slope.  exact: x Φ(x), Φ + x φ;   quick: x σ(1.702 x), σ + 1.702 x σ (1 - σ)
__device__ __forceinline__ float gelu_of(float x, bool exact) {
  return x * (exact ? normal(x).cdf : sigmoid(1.702f * x));
}
__device__ __forceinline__ float gelu_slope(float x, bool exact) {
  if (exact) {
    const Normal n = normal(x);
    return n.cdf + x * n.density;
  }
  const float s = sigmoid(1.702f * x);
  return s + 1.702f * x * s * (1.0f - s);
}
// log(1 + e^x) without overflow
__device__ __forceinline__ float softplus(float x) { return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))); }

}  // namespace switchback::cuda
