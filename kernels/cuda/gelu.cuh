// gelu.cuh: GELU and its derivative, as all bf16 kernels compute them.
//
//   gelu(x)  = x σ(x p(x²))
//   gelu'(x) = σ + σ (1 - σ) x q(x²),   q(t) = p(t) + 2 t p'(t), so that x q(x²) is the derivative of x p(x²)
//
// quick: p = q = 1.702. exact: σ(x p(x²)) = Φ(x) means x p(x²) = log(Φ(x)/Φ(-x)), an odd and almost straight
// function; p is its minimax polynomial up to |x| = 5.5, constant beyond. Error against the exact functions,
// in f32 arithmetic: gelu 8e-5 of its value for x > -2, 8e-4 down to -5.5 (a bf16 step is 4e-3 to 8e-3 of the
// value), less than 2e-7 beyond; gelu' 4e-5. Both kinds share one code and cost two special functions.
//
// Arrays are evaluated in step, one operation for all elements after the other: a warp that is alone on its
// scheduler needs several independent chains to keep it busy. Every operation rounds as it is written, so
// whoever computes gelu of the same bf16 value, in whatever kernel, gets the same bits.
#pragma once

#include "kernels/kernels.h"

namespace switchback::cuda {

struct GeluCurve {
  static constexpr int terms = 7;
  float p[terms];  // -log2(e) p: what exp2 wants
  float q[terms];
  float last;  // x² from which p and q are constant
};

inline GeluCurve gelu_curve(Gelu kind) {
  constexpr double exact[GeluCurve::terms] = {
      1.5955081350459006,    0.07310994645650591,     -0.0002738344730881758, -7.005533059257979e-05,
      4.227909153232119e-06, -1.0778806916867114e-07, 1.0513182993642399e-09};
  GeluCurve curve = {};
  curve.last = 5.5f * 5.5f;
  for (int i = 0; i < GeluCurve::terms; ++i) {
    const double p = kind == Gelu::exact ? exact[i] : i == 0 ? 1.702 : 0.0;
    curve.p[i] = static_cast<float>(-1.4426950408889634 * p);
    curve.q[i] = static_cast<float>((1 + 2 * i) * p);
  }
  return curve;
}

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

// s = σ(x p(x²)), t = x² up to its last value
template <int count>
__device__ __forceinline__ void gelu_gate(float (&s)[count], float (&t)[count], const float (&x)[count],
                                          const GeluCurve& curve) {
#pragma unroll
  for (int e = 0; e < count; ++e) t[e] = fminf(__fmul_rn(x[e], x[e]), curve.last);
#pragma unroll
  for (int e = 0; e < count; ++e) s[e] = curve.p[GeluCurve::terms - 1];
#pragma unroll
  for (int i = GeluCurve::terms - 2; i >= 0; --i) {
#pragma unroll
    for (int e = 0; e < count; ++e) s[e] = __fmaf_rn(s[e], t[e], curve.p[i]);
  }
#pragma unroll
  for (int e = 0; e < count; ++e) s[e] = exp2_approximately(__fmul_rn(x[e], s[e]));
#pragma unroll
  for (int e = 0; e < count; ++e) s[e] = reciprocal_approximately(__fadd_rn(1.0f, s[e]));
}

// y = gelu(x); y may be x.
template <int count>
__device__ __forceinline__ void gelu(float (&y)[count], const float (&x)[count], const GeluCurve& curve) {
  float s[count], t[count];
  gelu_gate(s, t, x, curve);
#pragma unroll
  for (int e = 0; e < count; ++e) y[e] = __fmul_rn(x[e], s[e]);
}

// y = gelu(x), slope = gelu'(x); slope may be x.
template <int count>
__device__ __forceinline__ void gelu_and_slope(float (&y)[count], float (&slope)[count],
                                               const float (&x)[count], const GeluCurve& curve) {
  float s[count], t[count], r[count];
  gelu_gate(s, t, x, curve);
#pragma unroll
  for (int e = 0; e < count; ++e) r[e] = curve.q[GeluCurve::terms - 1];
#pragma unroll
  for (int i = GeluCurve::terms - 2; i >= 0; --i) {
#pragma unroll
    for (int e = 0; e < count; ++e) r[e] = __fmaf_rn(r[e], t[e], curve.q[i]);
  }
#pragma unroll
  for (int e = 0; e < count; ++e) {
    y[e] = __fmul_rn(x[e], s[e]);
    const float bend = __fmaf_rn(-s[e], s[e], s[e]);
    slope[e] = __fmaf_rn(__fmul_rn(x[e], r[e]), bend, s[e]);
  }
}

// d *= gelu'(x)
template <int count>
__device__ __forceinline__ void times_gelu_slope(float (&d)[count], const float (&x)[count],
                                                 const GeluCurve& curve) {
  float y[count], slope[count];
  gelu_and_slope(y, slope, x, curve);
#pragma unroll
  for (int e = 0; e < count; ++e) d[e] = __fmul_rn(d[e], slope[e]);
}

}  // namespace switchback::cuda
