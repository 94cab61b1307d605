// gelu.cuh: GELU and its derivative, as all bf16 kernels compute them.
//
//   quick: gelu(x) = x σ(1.702 x),     gelu'(x) = σ + 1.702 x σ (1 - σ)
//   exact: gelu(x) = x σ(x p(x²)),     gelu'(x) = σ + x φ(x)
//
// σ(x p(x²)) = Φ(x) means x p(x²) = log(Φ(x)/Φ(-x)), an odd and almost straight function; p is its minimax
// polynomial up to |x| = 5.5, and beyond it errs to the side where σ is 0 or 1 anyway. Error of exact against
// the true functions, in f32 arithmetic: gelu 8e-5 of its value for x > -2, 1.3e-3 down to -5.5 (a bf16 step
// is 4e-3 to 8e-3 of the value), less than 1e-9 beyond; gelu' 2e-5.
//
// Arrays are evaluated in step, one operation for all elements after the other: a warp that is alone on its
// scheduler needs several independent chains to keep it busy. Every operation rounds as it is written, so
// whoever computes gelu of the same bf16 value, in whatever kernel, gets the same bits.
#pragma once

#include "kernels/kernels.h"

namespace switchback::cuda {

__device__ __forceinline__ float exp2_approximately(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float reciprocal_approximately(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// s = Φ(x) or σ(1.702 x), t = x²
template <Gelu kind, int count>
__device__ __forceinline__ void gelu_gate(float (&s)[count], float (&t)[count], const float (&x)[count]) {
  // -log2(e) p, for exp2; the highest power first
  constexpr float p[] = {-1.5167317e-09f, 1.55505313e-07f, -6.09958357e-06f, 0.000101068478f,
                         0.000395059636f, -0.105475357f,   -2.30183167f};
#pragma unroll
  for (int e = 0; e < count; ++e) t[e] = __fmul_rn(x[e], x[e]);
  if constexpr (kind == Gelu::exact) {
#pragma unroll
    for (int e = 0; e < count; ++e) s[e] = __fmaf_rn(p[0], t[e], p[1]);
#pragma unroll
    for (int i = 2; i < 7; ++i) {
#pragma unroll
      for (int e = 0; e < count; ++e) s[e] = __fmaf_rn(s[e], t[e], p[i]);
    }
#pragma unroll
    for (int e = 0; e < count; ++e) s[e] = __fmul_rn(x[e], s[e]);
  } else {
#pragma unroll
    for (int e = 0; e < count; ++e) s[e] = __fmul_rn(x[e], -2.45546696f);  // -1.702 log2(e)
  }
#pragma unroll
  for (int e = 0; e < count; ++e) s[e] = exp2_approximately(s[e]);
#pragma unroll
  for (int e = 0; e < count; ++e) s[e] = reciprocal_approximately(__fadd_rn(1.0f, s[e]));
}

// y = gelu(x); y may be x.
template <Gelu kind, int count>
__device__ __forceinline__ void gelu(float (&y)[count], const float (&x)[count]) {
  float s[count], t[count];
  gelu_gate<kind>(s, t, x);
#pragma unroll
  for (int e = 0; e < count; ++e) y[e] = __fmul_rn(x[e], s[e]);
}

// y = gelu(x), d *= gelu'(x)
template <Gelu kind, int count>
__device__ __forceinline__ void gelu_and_times_slope(float (&y)[count], float (&d)[count],
                                                     const float (&x)[count]) {
  float s[count], t[count];
  gelu_gate<kind>(s, t, x);
  if constexpr (kind == Gelu::exact) {  // t = φ(x) √2π
#pragma unroll
    for (int e = 0; e < count; ++e) t[e] = exp2_approximately(__fmul_rn(t[e], -0.721347520f));
  }
#pragma unroll
  for (int e = 0; e < count; ++e) {
    const float bend = kind == Gelu::exact ? t[e] : __fmaf_rn(-s[e], s[e], s[e]);
    const float steep = __fmul_rn(x[e], kind == Gelu::exact ? 0.398942280f : 1.702f);
    y[e] = __fmul_rn(x[e], s[e]);
    d[e] = __fmul_rn(d[e], __fmaf_rn(steep, bend, s[e]));
  }
}

// The same with the kind known at run time.
template <int count>
__device__ __forceinline__ void gelu(float (&y)[count], const float (&x)[count], bool exact) {
  exact ? gelu<Gelu::exact>(y, x) : gelu<Gelu::quick>(y, x);
}
template <int count>
__device__ __forceinline__ void gelu_and_times_slope(float (&y)[count], float (&d)[count],
                                                     const float (&x)[count], bool exact) {
  exact ? gelu_and_times_slope<Gelu::exact>(y, d, x) : gelu_and_times_slope<Gelu::quick>(y, d, x);
}

}  // namespace switchback::cuda
