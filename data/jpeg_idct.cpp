// jpeg_idct.cpp: the transform as a plain double loop, and with AVX2 on all eight columns, then all eight
// rows, at once.
#include "data/jpeg_idct.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace switchback {
namespace {

// 2^13 times: sqrt(2) cos(k pi / 16) and 1, as sums of the rounded constants of the factorisation; for the
// even inputs 0 2 4 6 and the odd ones 1 3 5 7. Output i = even(i) + odd(i), output 7 - i = even(i) - odd(i),
// i = 0..3.
constexpr int16_t kEven[4][4] = {{8192, 10703, 8192, 4433},
                                 {8192, 4433, -8192, -10704},
                                 {8192, -4433, -8192, 10704},
                                 {8192, -10703, 8192, -4433}};
constexpr int16_t kOdd[4][4] = {{11363, 9633, 6437, 2260},
                                {9633, -2259, -11362, -6436},
                                {6437, -11362, 2261, 9633},
                                {2260, -6436, 9633, -11363}};
constexpr int kColumnShift = 11, kRowShift = 18;

// 8 inputs `step` apart.
void transform(int32_t (&out)[8], const int32_t* in, int step, int shift) {
  for (int i = 0; i < 4; ++i) {
    int32_t even = 1 << (shift - 1), odd = 0;
    for (int k = 0; k < 4; ++k) {
      even += kEven[i][k] * in[2 * k * step];
      odd += kOdd[i][k] * in[(2 * k + 1) * step];
    }
    out[i] = (even + odd) >> shift;
    out[7 - i] = (even - odd) >> shift;
  }
}

}  // namespace

bool idct_plain(uint8_t* to, int64_t stride, const int16_t* block, const uint16_t* quantisers) {
  int32_t values[64], out[8];
  int32_t magnitude = 0;
  for (int i = 0; i < 64; ++i) {
    values[i] = static_cast<int16_t>(block[i] * quantisers[i]);
    magnitude += std::abs(values[i]);
  }
  if (magnitude > kIdctMagnitudeLimit) return false;
  for (int x = 0; x < 8; ++x) {
    transform(out, values + x, 8, kColumnShift);
    for (int y = 0; y < 8; ++y) values[8 * y + x] = out[y];
  }
  for (int y = 0; y < 8; ++y) {
    transform(out, values + 8 * y, 1, kRowShift);
    for (int x = 0; x < 8; ++x) to[y * stride + x] = static_cast<uint8_t>(std::clamp(out[x] + 128, 0, 255));
  }
  return true;
}

bool idct_dc_only(uint8_t* to, int64_t stride, int16_t dc, uint16_t quantiser) {
  const int32_t value = static_cast<int16_t>(dc * quantiser);
  if (std::abs(value) > kIdctMagnitudeLimit) return false;
  const int level = std::clamp(((value + 4) >> 3) + 128, 0, 255);
  for (int y = 0; y < 8; ++y) std::memset(to + y * stride, level, 8);
  return true;
}

#ifndef __AVX2__

bool idct(uint8_t* to, int64_t stride, const int16_t* block, const uint16_t* quantisers) {
  return idct_plain(to, stride, block, quantisers);
}

#else

namespace {

// Eight lines at once. inputs: pairs of 16-bit inputs (0 2) (4 6) (1 3) (5 7), eight of each; outputs 0 to 7
// in int32.
struct Pairs {
  __m256i in02, in46, in13, in57;
};

__m256i constants(int16_t first, int16_t second) {
  return _mm256_set1_epi32(static_cast<int32_t>(static_cast<uint32_t>(static_cast<uint16_t>(first)) |
                                                static_cast<uint32_t>(static_cast<uint16_t>(second)) << 16));
}

template <int shift>
void transform(__m256i (&out)[8], const Pairs& in) {
  const __m256i half = _mm256_set1_epi32(1 << (shift - 1));
  for (int i = 0; i < 4; ++i) {
    const __m256i even = _mm256_add_epi32(
        _mm256_add_epi32(_mm256_madd_epi16(in.in02, constants(kEven[i][0], kEven[i][1])), half),
        _mm256_madd_epi16(in.in46, constants(kEven[i][2], kEven[i][3])));
    const __m256i odd = _mm256_add_epi32(_mm256_madd_epi16(in.in13, constants(kOdd[i][0], kOdd[i][1])),
                                         _mm256_madd_epi16(in.in57, constants(kOdd[i][2], kOdd[i][3])));
    out[i] = _mm256_srai_epi32(_mm256_add_epi32(even, odd), shift);
    out[7 - i] = _mm256_srai_epi32(_mm256_sub_epi32(even, odd), shift);
  }
}

__m256i interleave(__m128i a, __m128i b) {
  return _mm256_set_m128i(_mm_unpackhi_epi16(a, b), _mm_unpacklo_epi16(a, b));
}

// sum of 16 unsigned 16-bit numbers, saturated
int saturated_sum(__m256i values) {
  __m128i sum = _mm_adds_epu16(_mm256_castsi256_si128(values), _mm256_extracti128_si256(values, 1));
  sum = _mm_adds_epu16(sum, _mm_shuffle_epi32(sum, 0x4e));
  sum = _mm_adds_epu16(sum, _mm_shuffle_epi32(sum, 0xb1));
  return std::min(_mm_extract_epi16(sum, 0) + _mm_extract_epi16(sum, 1), 65535);
}

}  // namespace

bool idct(uint8_t* to, int64_t stride, const int16_t* block, const uint16_t* quantisers) {
  __m256i two_rows[4];
  __m256i magnitude = _mm256_setzero_si256();
  for (int i = 0; i < 4; ++i) {
    two_rows[i] =
        _mm256_mullo_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + 16 * i)),
                           _mm256_loadu_si256(reinterpret_cast<const __m256i*>(quantisers + 16 * i)));
    magnitude = _mm256_adds_epu16(magnitude, _mm256_abs_epi16(two_rows[i]));
  }
  if (saturated_sum(magnitude) > kIdctMagnitudeLimit) return false;
  __m128i row[8];
  for (int i = 0; i < 4; ++i) {
    row[2 * i] = _mm256_castsi256_si128(two_rows[i]);
    row[2 * i + 1] = _mm256_extracti128_si256(two_rows[i], 1);
  }
  // Columns: element c of a register belongs to column c.
  __m256i out[8];
  transform<kColumnShift>(out, {interleave(row[0], row[2]), interleave(row[4], row[6]),
                                interleave(row[1], row[3]), interleave(row[5], row[7])});
  // Rows r and r + 1 packed: r c0-3, r+1 c0-3 | r c4-7, r+1 c4-7; then in each half the pairs of columns
  //   (r c0 c2) (r+1 c0 c2) (r c1 c3) (r+1 c1 c3) | the same of c4 c6, c5 c7
  const __m256i pair_columns = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15,  //
                                                0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
  __m256i two[4];
  for (int i = 0; i < 4; ++i)
    two[i] = _mm256_shuffle_epi8(_mm256_packs_epi32(out[2 * i], out[2 * i + 1]), pair_columns);
  const __m256i even_0to3 = _mm256_unpacklo_epi64(two[0], two[1]),
                even_4to7 = _mm256_unpacklo_epi64(two[2], two[3]);
  const __m256i odd_0to3 = _mm256_unpackhi_epi64(two[0], two[1]),
                odd_4to7 = _mm256_unpackhi_epi64(two[2], two[3]);
  // Rows: element r of a register belongs to row r.
  transform<kRowShift>(out, {_mm256_permute2x128_si256(even_0to3, even_4to7, 0x20),
                             _mm256_permute2x128_si256(even_0to3, even_4to7, 0x31),
                             _mm256_permute2x128_si256(odd_0to3, odd_4to7, 0x20),
                             _mm256_permute2x128_si256(odd_0to3, odd_4to7, 0x31)});
  // Bytes c0-3 of rows 0-3 | 4-7, each column together; transposed within the halves; joined with c4-7.
  const __m256i transpose = _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15,  //
                                             0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m256i left = _mm256_shuffle_epi8(
      _mm256_packs_epi16(_mm256_packs_epi32(out[0], out[1]), _mm256_packs_epi32(out[2], out[3])), transpose);
  const __m256i right = _mm256_shuffle_epi8(
      _mm256_packs_epi16(_mm256_packs_epi32(out[4], out[5]), _mm256_packs_epi32(out[6], out[7])), transpose);
  const __m256i level = _mm256_set1_epi8(-128);  // adding 128 to a signed byte makes it unsigned
  const __m256i rows_0145 = _mm256_xor_si256(_mm256_unpacklo_epi32(left, right), level);
  const __m256i rows_2367 = _mm256_xor_si256(_mm256_unpackhi_epi32(left, right), level);
  const auto store = [&](int64_t y, __m128i rows) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to + y * stride), rows);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to + (y + 1) * stride), _mm_unpackhi_epi64(rows, rows));
  };
  store(0, _mm256_castsi256_si128(rows_0145));
  store(2, _mm256_castsi256_si128(rows_2367));
  store(4, _mm256_extracti128_si256(rows_0145, 1));
  store(6, _mm256_extracti128_si256(rows_2367, 1));
  return true;
}

#endif

}  // namespace switchback
