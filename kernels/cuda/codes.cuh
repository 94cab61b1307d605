// codes.cuh: 8-bit codes in registers: row maxima, eight elements to eight bytes and back. For the quantisers
// and for kernels that quantise what they have just computed.
//
// A row of bf16 on its way to codes: magnitudes of two elements at a time as unsigned 16-bit integers (their
// order is that of the numbers, with NaN on top), one maximum over the row, one division, then a product and
// a rounding for each element.
#pragma once

#include <cuda_fp8.h>

#include "kernels/cuda/vec.cuh"
#include "kernels/quantize.h"

namespace switchback::cuda {

// ---- maxima -----------------------------------------------------------------------------------------------
// Two 16-bit magnitudes, each the largest so far.
__device__ __forceinline__ uint32_t larger_magnitudes(uint32_t most, uint4 v) {
  constexpr uint32_t no_sign = 0x7fff7fffu;
  most = __vmaxu2(most, __vmaxu2(v.x & no_sign, v.y & no_sign));
  return __vmaxu2(most, __vmaxu2(v.z & no_sign, v.w & no_sign));
}
// The largest of `threads` threads' values (whole warps), to all of them.
template <int threads>
__device__ __forceinline__ uint32_t block_maximum(uint32_t value) {
  value = __reduce_max_sync(0xffffffffu, value);
  if constexpr (threads > 32) {
    __shared__ uint32_t of_warp[threads / 32];
    __syncthreads();  // an earlier call may still be reading
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < threads / 32; ++w) value = max(value, of_warp[w]);
  }
  return value;
}
// Two 16-bit magnitudes a thread -> the bits of the row's absmax as f32.
template <int threads>
__device__ __forceinline__ uint32_t row_maximum(uint32_t magnitudes) {
  return block_maximum<threads>(max(magnitudes >> 16, magnitudes & 0xffffu)) << 16;
}

// ---- codes ------------------------------------------------------------------------------------------------
__device__ __forceinline__ void unpack(float (&v)[8], uint4 packed) {
  const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    v[2 * i] = __uint_as_float(words[i] << 16);
    v[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}

// Four values times their inverse scales, as four bytes.
template <Format format>
__device__ __forceinline__ uint32_t encode_four(const float* v, float i0, float i1, float i2, float i3) {
  if constexpr (format == Format::int8) {
    const auto bits = [](float x, float inverse) {  // int8_of
      return __float_as_uint(__fmaf_rn(x, inverse, 12582912.0f));
    };
    return __byte_perm(__byte_perm(bits(v[0], i0), bits(v[1], i1), 0x0040),
                       __byte_perm(bits(v[2], i2), bits(v[3], i3), 0x0040), 0x5410);
  } else {
    constexpr __nv_fp8_interpretation_t kind = format == Format::e4m3 ? __NV_E4M3 : __NV_E5M2;
    const float2 first = {__fmul_rn(v[0], i0), __fmul_rn(v[1], i1)};
    const float2 second = {__fmul_rn(v[2], i2), __fmul_rn(v[3], i3)};
    const uint32_t low = __nv_cvt_float2_to_fp8x2(first, __NV_SATFINITE, kind);
    const uint32_t high = __nv_cvt_float2_to_fp8x2(second, __NV_SATFINITE, kind);
    return low | high << 16;
  }
}
template <Format format>
__device__ __forceinline__ uint2 encode_each(const float (&v)[8], const float (&inverse)[8]) {
  float kept[8];
#pragma unroll
  for (int e = 0; e < 8; ++e) kept[e] = inverse[e] == 0 ? 0.0f : v[e];
  return {encode_four<format>(kept, inverse[0], inverse[1], inverse[2], inverse[3]),
          encode_four<format>(kept + 4, inverse[4], inverse[5], inverse[6], inverse[7])};
}
// For int8, finite values need no mask: their product with 0 is 0.
template <Format format>
__device__ __forceinline__ uint2 encode_finite(const float (&v)[8], float inverse) {
  const uint2 codes = {encode_four<format>(v, inverse, inverse, inverse, inverse),
                       encode_four<format>(v + 4, inverse, inverse, inverse, inverse)};
  if constexpr (format == Format::int8) return codes;
  const uint32_t mask = inverse == 0 ? 0u : ~0u;
  return {codes.x & mask, codes.y & mask};
}
template <Format format>
__device__ __forceinline__ uint2 encode(const float (&v)[8], float inverse) {
  const uint32_t mask = inverse == 0 ? 0u : ~0u;
  return {encode_four<format>(v, inverse, inverse, inverse, inverse) & mask,
          encode_four<format>(v + 4, inverse, inverse, inverse, inverse) & mask};
}

// The same for a format that is known at run time only: kernels that do much else need not be made for each.
__device__ __forceinline__ uint2 encode(Format format, const float (&v)[8], float inverse) {
  switch (format) {
    case Format::int8:
      return encode<Format::int8>(v, inverse);
    case Format::e4m3:
      return encode<Format::e4m3>(v, inverse);
    default:
      return encode<Format::e5m2>(v, inverse);
  }
}

__device__ __forceinline__ void store_word(uint8_t* to, uint32_t word, int64_t valid) {
  if (valid >= 4 && reinterpret_cast<uintptr_t>(to) % 4 == 0) {
    *reinterpret_cast<uint32_t*>(to) = word;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (i < valid) to[i] = static_cast<uint8_t>(word >> (8 * i));
  }
}
__device__ __forceinline__ void store_codes(uint8_t* to, uint2 codes, int64_t valid) {
  if (valid >= 8 && reinterpret_cast<uintptr_t>(to) % 8 == 0) {
    *reinterpret_cast<uint2*>(to) = codes;
  } else {
    store_word(to, codes.x, valid);
    store_word(to + 4, codes.y, valid - 4);
  }
}

__device__ __forceinline__ uint2 load_codes(const uint8_t* from, int64_t valid) {
  if (valid >= 8 && reinterpret_cast<uintptr_t>(from) % 8 == 0) return *reinterpret_cast<const uint2*>(from);
  uint32_t word[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (i < valid) word[i / 4] |= static_cast<uint32_t>(from[i]) << (8 * (i % 4));
  return {word[0], word[1]};
}

template <Format format>
__device__ __forceinline__ float value_of_code(uint8_t code) {
  if constexpr (format == Format::int8)
    return static_cast<float>(static_cast<int8_t>(code));
  else
    return value_of_float8<format>(code);
}
template <Format format>
__device__ __forceinline__ void decode(float (&v)[8], const uint8_t* from, int64_t valid) {
  if (valid >= 8 && reinterpret_cast<uintptr_t>(from) % 8 == 0) {
    const uint2 words = *reinterpret_cast<const uint2*>(from);
#pragma unroll
    for (int e = 0; e < 8; ++e)
      v[e] = value_of_code<format>(static_cast<uint8_t>((e < 4 ? words.x : words.y) >> (8 * (e % 4))));
  } else {
#pragma unroll
    for (int e = 0; e < 8; ++e) v[e] = e < valid ? value_of_code<format>(from[e]) : 0.0f;
  }
}

}  // namespace switchback::cuda
