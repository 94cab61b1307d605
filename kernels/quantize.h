// quantize.h: quantisers to the bit, for host and device (paper section 1; where the paper's programs differ
// among themselves, one order of operations is fixed here).
//
//   absmax   the largest |x| of what shares a scale; NaN when there is a NaN
//   inverse = largest/absmax     scale = absmax/largest      (largest: of the format)
//   code    = nearest(x · inverse), ties to even             x ≈ value(code) · scale
//             int8: of the exact product; 8-bit floats: of the product rounded to f32
//
//   absmax < 2^-110 (zero among them): codes 0, scale 0. Inverse would overflow; nothing that small survives
//     the product with the other operand's scale anyway.
//   absmax Inf or NaN: codes 0, scale NaN. The whole result of the row (tensor, column) is NaN, so the loss
//     shows it.
//
// |x · inverse| may exceed `largest` by one unit of the last place of f32; rounding to the format takes it
// back. -128 is never produced. Every operation below rounds once, in the order written: divisions are
// correctly rounded on GPUs, too, and nothing may be contracted. (int8's product and rounding are one
// instruction of a GPU, a fused multiply-add.)
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/formats.h"

#ifdef __CUDACC__
#define SWITCHBACK_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SWITCHBACK_HOST_DEVICE inline
#endif

namespace switchback {
namespace rounded {  // arithmetic that rounds once, whatever the compiler may contract

SWITCHBACK_HOST_DEVICE float multiply(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
SWITCHBACK_HOST_DEVICE float divide(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}
SWITCHBACK_HOST_DEVICE float add(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}
SWITCHBACK_HOST_DEVICE float fused(float a, float b, float c) {
#ifdef __CUDA_ARCH__
  return __fmaf_rn(a, b, c);
#else
  return std::fma(a, b, c);
#endif
}
SWITCHBACK_HOST_DEVICE uint32_t bits_of(float x) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(x);
#else
  return std::bit_cast<uint32_t>(x);
#endif
}
SWITCHBACK_HOST_DEVICE float from_bits(uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  return std::bit_cast<float>(bits);
#endif
}

}  // namespace rounded

// ---- scales -----------------------------------------------------------------------------------------------
// The order of |x| as integers: finite < Inf < NaN. So a maximum of these lets a NaN through, and needs no
// comparison of floats.
SWITCHBACK_HOST_DEVICE uint32_t magnitude_bits(float x) { return rounded::bits_of(x) & 0x7fffffffu; }

SWITCHBACK_HOST_DEVICE constexpr float largest_of(Format format) {
  switch (format) {
    case Format::int8:
      return 127;
    case Format::e4m3:
      return 448;
    case Format::e5m2:
      return 57344;
    case Format::paper_e4m3:
      return 480;
    case Format::paper_e5m2:
      return 114688;
    default:
      return 1;
  }
}

struct Scaling {
  float inverse, scale;  // inverse 0: all codes are 0
};
SWITCHBACK_HOST_DEVICE Scaling scaling_of(uint32_t largest_magnitude_bits, float largest) {
  constexpr uint32_t infinity = 0x7f800000u, least = (127u - 110u) << 23;
  if (largest_magnitude_bits >= infinity) return {0.0f, rounded::from_bits(0x7fc00000u)};
  if (largest_magnitude_bits < least) return {0.0f, 0.0f};
  const float absmax = rounded::from_bits(largest_magnitude_bits);
  return {rounded::divide(largest, absmax), rounded::divide(absmax, largest)};
}

// ---- int8 -------------------------------------------------------------------------------------------------
// round(x · inverse) to the nearest integer, ties to even, for |x · inverse| < 2^22: adding 1.5 · 2^23 leaves
// it in the low bits of the sum. The host adds in f64, which holds the product of two f32 exactly.
SWITCHBACK_HOST_DEVICE int8_t int8_of(float x, float inverse) {
#ifdef __CUDA_ARCH__
  return static_cast<int8_t>(__float_as_uint(__fmaf_rn(x, inverse, 12582912.0f)) & 0xffu);
#else
  return static_cast<int8_t>(std::bit_cast<uint64_t>(double{x} * double{inverse} + 0x1.8p52) & 0xffu);
#endif
}

// ---- 8-bit floats -----------------------------------------------------------------------------------------
// m >= 0 to the nearest multiple of 2^(e - mantissa), e its exponent but at least `least`; ties to even.
// Adding 2^(23 + e - mantissa) makes the unit of the last place of the sum just that.
SWITCHBACK_HOST_DEVICE float round_magnitude(float m, int mantissa, int least) {
  const int own = static_cast<int>(rounded::bits_of(m) >> 23) - 127, e = own < least ? least : own;
  const float c = rounded::from_bits(static_cast<uint32_t>(e - mantissa + 23 + 127) << 23);
  return rounded::add(rounded::add(m, c), -c);
}
SWITCHBACK_HOST_DEVICE float smaller(float a, float b) { return a < b ? a : b; }

// The magnitude m (finite) on the format's grid; what is too large becomes the largest value.
template <Format format>
SWITCHBACK_HOST_DEVICE float magnitude_on_grid(float m) {
  if constexpr (format == Format::e4m3) {
    return smaller(round_magnitude(m, 3, -6), 448.0f);
  } else if constexpr (format == Format::e5m2) {
    return smaller(round_magnitude(m, 2, -14), 57344.0f);
  } else if constexpr (format == Format::paper_e4m3) {
    // Subnormals are 1 .. 7 times 2^-11, the least normal is 2^-6; between them lies a gap. Its middle is a
    // tie between codes 7 and 8: to the even one.
    constexpr float unit = 0x1p-11f, low = 7 * unit, normal = 0x1p-6f, middle = (low + normal) / 2;
    const float subnormal = m >= middle ? normal : smaller(round_magnitude(m, 3, -8), low);
    return m < normal ? subnormal : smaller(round_magnitude(m, 3, -6), 480.0f);
  } else {
    static_assert(format == Format::paper_e5m2);
    constexpr float unit = 0x1p-18f, low = 3 * unit, normal = 0x1p-14f, middle = (low + normal) / 2;
    const float subnormal = m >= middle ? normal : smaller(round_magnitude(m, 2, -16), low);
    return m < normal ? subnormal : smaller(round_magnitude(m, 2, -14), 114688.0f);
  }
}
template <Format format>
SWITCHBACK_HOST_DEVICE float on_grid(float v) {
  const float m = magnitude_on_grid<format>(rounded::from_bits(magnitude_bits(v)));
  return rounded::from_bits(rounded::bits_of(m) | (rounded::bits_of(v) & 0x80000000u));
}

// OCP code: sign, exponent (bias 7 or 15), mantissa (3 or 2 bits). v finite; saturates.
template <Format format>
SWITCHBACK_HOST_DEVICE uint8_t float8_of(float v) {
  static_assert(format == Format::e4m3 || format == Format::e5m2);
  constexpr int mantissa = format == Format::e4m3 ? 3 : 2, bias = format == Format::e4m3 ? 7 : 15;
  const float m = magnitude_on_grid<format>(rounded::from_bits(magnitude_bits(v)));
  const uint32_t normal = (rounded::bits_of(m) >> (23 - mantissa)) - ((127u - bias) << mantissa);
  const uint32_t subnormal = static_cast<uint32_t>(m * static_cast<float>(1 << (bias - 1 + mantissa)));
  const bool is_normal = m >= rounded::from_bits((127u - bias + 1) << 23);
  return static_cast<uint8_t>((is_normal ? normal : subnormal) | (rounded::bits_of(v) >> 31 << 7));
}

// The value of an OCP code. e4m3: S.1111.111 is NaN; e5m2: S.11111.00 is Inf, the rest of that exponent NaN.
template <Format format>
SWITCHBACK_HOST_DEVICE float value_of_float8(uint8_t code) {
  static_assert(format == Format::e4m3 || format == Format::e5m2);
  constexpr int mantissa = format == Format::e4m3 ? 3 : 2, bias = format == Format::e4m3 ? 7 : 15;
  const uint32_t sign = static_cast<uint32_t>(code & 0x80u) << 24, magnitude = code & 0x7fu;
  float value;
  if (format == Format::e4m3 ? magnitude == 0x7f : magnitude > 0x7c) {
    value = rounded::from_bits(0x7fc00000u);
  } else if (format == Format::e5m2 && magnitude == 0x7c) {
    value = rounded::from_bits(0x7f800000u);
  } else if (magnitude < (1u << mantissa)) {
    constexpr float unit = format == Format::e4m3 ? 0x1p-9f : 0x1p-16f;
    value = static_cast<float>(magnitude) * unit;
  } else {
    value = rounded::from_bits((magnitude << (23 - mantissa)) + ((127u - bias) << 23));
  }
  return rounded::from_bits(rounded::bits_of(value) | sign);
}

// ---- the result of a product ------------------------------------------------------------------------------
// One element before its rounding to the result's type: sum = Σ value(a) value(b), exact for int8 and rounded
// once to f32. The same as gemm_int8.cuh's.
SWITCHBACK_HOST_DEVICE float scaled_sum(float sum, float a_scale, float b_scale, float bias) {
  return rounded::fused(sum, rounded::multiply(a_scale, b_scale), bias);
}
// A value out of its code.
SWITCHBACK_HOST_DEVICE float dequantized(float value, float scale) { return rounded::multiply(value, scale); }

}  // namespace switchback
