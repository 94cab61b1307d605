// jpeg_colour.cpp: loops that the compiler vectorises, but for the last: its pixels have three bytes.
#include "data/jpeg_colour.h"

#include <algorithm>

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace switchback {

void upsample_row(uint8_t* to, const uint8_t* from, int64_t n) {
  for (int64_t i = 1; i + 1 < n; ++i) {
    to[2 * i] = static_cast<uint8_t>((3 * from[i] + from[i - 1] + 1) >> 2);
    to[2 * i + 1] = static_cast<uint8_t>((3 * from[i] + from[i + 1] + 2) >> 2);
  }
  to[0] = from[0];
  to[1] = n > 1 ? static_cast<uint8_t>((3 * from[0] + from[1] + 2) >> 2) : from[0];
  if (n > 1) to[2 * n - 2] = static_cast<uint8_t>((3 * from[n - 1] + from[n - 2] + 1) >> 2);
  to[2 * n - 1] = from[n - 1];
}

void upsample_two_rows(uint8_t* to, const uint8_t* nearer, const uint8_t* farther, int64_t n, int16_t* sums) {
  int16_t* sum = sums + 1;  // with one more on either side
  for (int64_t i = 0; i < n; ++i) sum[i] = static_cast<int16_t>(3 * nearer[i] + farther[i]);
  sum[-1] = sum[0];
  sum[n] = sum[n - 1];
  for (int64_t i = 0; i < n; ++i) {
    to[2 * i] = static_cast<uint8_t>((3 * sum[i] + sum[i - 1] + 8) >> 4);
    to[2 * i + 1] = static_cast<uint8_t>((3 * sum[i] + sum[i + 1] + 7) >> 4);
  }
}

void ycc_to_rgb_plain(uint8_t* to, const uint8_t* y, const uint8_t* cb, const uint8_t* cr, int64_t width) {
  constexpr int half = 1 << 15;
  for (int64_t x = 0; x < width; ++x) {
    const int blue = cb[x] - 128, red = cr[x] - 128;
    to[3 * x] = static_cast<uint8_t>(std::clamp(y[x] + ((91881 * red + half) >> 16), 0, 255));
    to[3 * x + 1] =
        static_cast<uint8_t>(std::clamp(y[x] + ((-22554 * blue - 46802 * red + half) >> 16), 0, 255));
    to[3 * x + 2] = static_cast<uint8_t>(std::clamp(y[x] + ((116130 * blue + half) >> 16), 0, 255));
  }
}

void grey_to_rgb(uint8_t* to, const uint8_t* grey, int64_t width) {
  for (int64_t x = 0; x < width; ++x) to[3 * x] = to[3 * x + 1] = to[3 * x + 2] = grey[x];
}

#ifndef __AVX2__

void ycc_to_rgb(uint8_t* to, const uint8_t* y, const uint8_t* cb, const uint8_t* cr, int64_t width) {
  ycc_to_rgb_plain(to, y, cb, cr, width);
}

#else

namespace {

// (a first + b second + 1/2) >> 16 for 16 pairs of 16-bit numbers
__m256i weighted(__m256i a, __m256i b, int first, int second) {
  const __m256i weights = _mm256_set1_epi32((first & 0xffff) | second * 65536);
  const __m256i half = _mm256_set1_epi32(1 << 15);
  const __m256i low = _mm256_add_epi32(_mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), weights), half);
  const __m256i high = _mm256_add_epi32(_mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), weights), half);
  return _mm256_packs_epi32(_mm256_srai_epi32(low, 16), _mm256_srai_epi32(high, 16));
}

// 16 bytes each of 16-bit numbers, clipped, in order
__m128i clipped(__m256i values) {
  const __m256i bytes = _mm256_packus_epi16(values, values);
  return _mm256_castsi256_si128(_mm256_permute4x64_epi64(bytes, 0x08));
}

}  // namespace

// The constants beyond 16 bits are split:
//   91881 = 65536 + 26345, 46802 = 65536 - 18734, 116130 = 131072 - 14942.
void ycc_to_rgb(uint8_t* to, const uint8_t* y, const uint8_t* cb, const uint8_t* cr, int64_t width) {
  const auto load = [](const uint8_t* from) {
    return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  };
  const __m256i middle = _mm256_set1_epi16(128), zero = _mm256_setzero_si256();
  // Where red, green and blue of 16 pixels go in 48 bytes: rows of places for the three registers.
  const __m128i red_0 = _mm_setr_epi8(0, -1, -1, 1, -1, -1, 2, -1, -1, 3, -1, -1, 4, -1, -1, 5);
  const __m128i red_1 = _mm_setr_epi8(-1, -1, 6, -1, -1, 7, -1, -1, 8, -1, -1, 9, -1, -1, 10, -1);
  const __m128i red_2 = _mm_setr_epi8(-1, 11, -1, -1, 12, -1, -1, 13, -1, -1, 14, -1, -1, 15, -1, -1);
  const __m128i green_0 = _mm_setr_epi8(-1, 0, -1, -1, 1, -1, -1, 2, -1, -1, 3, -1, -1, 4, -1, -1);
  const __m128i green_1 = _mm_setr_epi8(5, -1, -1, 6, -1, -1, 7, -1, -1, 8, -1, -1, 9, -1, -1, 10);
  const __m128i green_2 = _mm_setr_epi8(-1, -1, 11, -1, -1, 12, -1, -1, 13, -1, -1, 14, -1, -1, 15, -1);
  const __m128i blue_0 = _mm_setr_epi8(-1, -1, 0, -1, -1, 1, -1, -1, 2, -1, -1, 3, -1, -1, 4, -1);
  const __m128i blue_1 = _mm_setr_epi8(-1, 5, -1, -1, 6, -1, -1, 7, -1, -1, 8, -1, -1, 9, -1, -1);
  const __m128i blue_2 = _mm_setr_epi8(10, -1, -1, 11, -1, -1, 12, -1, -1, 13, -1, -1, 14, -1, -1, 15);
  int64_t x = 0;
  for (; x + 16 <= width; x += 16) {
    const __m256i light = load(y + x);
    const __m256i blue = _mm256_sub_epi16(load(cb + x), middle), red = _mm256_sub_epi16(load(cr + x), middle);
    const __m128i r = clipped(_mm256_add_epi16(_mm256_add_epi16(light, red), weighted(red, zero, 26345, 0)));
    const __m128i g =
        clipped(_mm256_add_epi16(_mm256_sub_epi16(light, red), weighted(blue, red, -22554, 18734)));
    const __m128i b = clipped(_mm256_add_epi16(_mm256_add_epi16(light, _mm256_add_epi16(blue, blue)),
                                               weighted(blue, zero, -14942, 0)));
    const auto store = [&](int64_t part, __m128i red_places, __m128i green_places, __m128i blue_places) {
      const __m128i bytes =
          _mm_or_si128(_mm_or_si128(_mm_shuffle_epi8(r, red_places), _mm_shuffle_epi8(g, green_places)),
                       _mm_shuffle_epi8(b, blue_places));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 3 * x + 16 * part), bytes);
    };
    store(0, red_0, green_0, blue_0);
    store(1, red_1, green_1, blue_1);
    store(2, red_2, green_2, blue_2);
  }
  ycc_to_rgb_plain(to + 3 * x, y + x, cb + x, cr + x, width - x);
}

#endif

}  // namespace switchback
