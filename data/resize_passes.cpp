// resize_passes.cpp: the passes of a resize with AVX2, equal to the plain ones bit for bit.
//
// The processor multiplies pairs of 16-bit numbers and adds them (vpmaddwd) four times faster than it
// multiplies 32-bit ones, but a weight has 24 bits. So each weight is split,
//   w = 2^11 high + low    with 0 <= low < 2^11,    sum w p = 2^11 sum high p + sum low p,
// which is exact in int32: both sums and the total fit.
#include "data/resize_passes.h"

#include <cstring>

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace switchback {

#ifndef __AVX2__

void horizontal_pass(uint8_t* to, const PixelRows& from, const ResizeWeights& weights) {
  horizontal_pass_plain(to, from, weights);
}

void vertical_pass(uint8_t* to, const PixelRows& from, int64_t first_row, int64_t row_bytes,
                   const ResizeWeights& weights) {
  vertical_pass_plain(to, from, first_row, row_bytes, weights);
}

#else

namespace {

constexpr int kLowBits = 11;

// sums + a b for pairs of neighbours: one instruction where the processor has it.
__m256i add_products(__m256i sums, __m256i a, __m256i b) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
  return _mm256_dpwssd_epi32(sums, a, b);
#else
  return _mm256_add_epi32(sums, _mm256_madd_epi16(a, b));
#endif
}

// Two weights as the two 16-bit halves of an int32, the first below.
int32_t pair(int32_t first, int32_t second) {
  return static_cast<int32_t>(static_cast<uint32_t>(first & 0xffff) | static_cast<uint32_t>(second) << 16);
}
int32_t high_pair(int32_t first, int32_t second) { return pair(first >> kLowBits, second >> kLowBits); }
int32_t low_pair(int32_t first, int32_t second) {
  constexpr int32_t mask = (1 << kLowBits) - 1;
  return pair(first & mask, second & mask);
}

// sum w p + 1/2, as an integer: 8 sums.
__m256i finish(__m256i high, __m256i low) {
  const __m256i half = _mm256_set1_epi32(1 << (ResizeWeights::kFractionBits - 1));
  const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(_mm256_slli_epi32(high, kLowBits), low), half);
  return _mm256_srai_epi32(sum, ResizeWeights::kFractionBits);
}

// The weights of four neighbouring source pixels, laid out as the products want them:
//   (w0 w1) four times, (w2 w3) four times
struct FourWeights {
  alignas(32) int32_t high[8];
  alignas(32) int32_t low[8];
};

// Four rows at once, so that the weights are loaded once for all of them.
// One step takes 4 pixels of a row, r0 g0 b0 r1 ..., to 16 bits each in the order
//   r0 r1 g0 g1 b0 b1 . . | r2 r3 g2 g3 b2 b3 . .
// and adds their products. 16 bytes are loaded for 12, and a last step reads up to 3 pixels with weight 0.
constexpr int64_t kRowsAtOnce = 4;

void four_rows(uint8_t* const (&to)[kRowsAtOnce], const uint8_t* const (&from)[kRowsAtOnce],
               const ResizeWeights& weights, const std::vector<FourWeights>& steps_of_weights,
               int64_t steps_per_pixel) {
  const __m256i arrange = _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,  //
                                           6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
  const int64_t width = weights.size();
  for (int64_t x = 0; x < width; ++x) {
    const FourWeights* step = steps_of_weights.data() + x * steps_per_pixel;
    const int64_t steps = (weights.count[static_cast<size_t>(x)] + 3) / 4;
    int64_t offset = weights.first[static_cast<size_t>(x)] * int64_t{3};
    __m256i high[kRowsAtOnce], low[kRowsAtOnce];
    for (int64_t r = 0; r < kRowsAtOnce; ++r) high[r] = low[r] = _mm256_setzero_si256();
    for (int64_t s = 0; s < steps; ++s, offset += 12) {
      const __m256i weight_high = _mm256_load_si256(reinterpret_cast<const __m256i*>(step[s].high));
      const __m256i weight_low = _mm256_load_si256(reinterpret_cast<const __m256i*>(step[s].low));
      for (int64_t r = 0; r < kRowsAtOnce; ++r) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from[r] + offset));
        const __m256i pixels = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), arrange);
        high[r] = add_products(high[r], pixels, weight_high);
        low[r] = add_products(low[r], pixels, weight_low);
      }
    }
    // The halves of a register hold the sums of the even and the odd pairs of pixels. Two rows are added at a
    // time.
    __m256i two[2];
    for (int64_t r = 0; r < 2; ++r) {
      const __m256i high_a = high[2 * r], high_b = high[2 * r + 1], low_a = low[2 * r],
                    low_b = low[2 * r + 1];
      const __m256i high_sum = _mm256_add_epi32(_mm256_permute2x128_si256(high_a, high_b, 0x20),
                                                _mm256_permute2x128_si256(high_a, high_b, 0x31));
      const __m256i low_sum = _mm256_add_epi32(_mm256_permute2x128_si256(low_a, low_b, 0x20),
                                               _mm256_permute2x128_si256(low_a, low_b, 0x31));
      two[r] = finish(high_sum, low_sum);
    }
    const __m256i words = _mm256_packs_epi32(two[0], two[1]);  // rows 0 2 | 1 3
    const __m256i bytes = _mm256_packus_epi16(words, words);
    const __m128i even = _mm256_castsi256_si128(bytes), odd = _mm256_extracti128_si256(bytes, 1);
    const int32_t results[kRowsAtOnce] = {_mm_cvtsi128_si32(even), _mm_cvtsi128_si32(odd),
                                          _mm_extract_epi32(even, 1), _mm_extract_epi32(odd, 1)};
    // Four bytes are written for three; the fourth is the next pixel's first, written after it.
    if (x + 1 < width) {
      for (int64_t r = 0; r < kRowsAtOnce; ++r) std::memcpy(to[r] + 3 * x, &results[r], 4);
    } else {
      for (int64_t r = 0; r < kRowsAtOnce; ++r) std::memcpy(to[r] + 3 * x, &results[r], 3);
    }
  }
}

// 32 bytes of one output row, columns x and on.
void columns_32(uint8_t* to, const uint8_t* rows, int64_t stride, int64_t count, const int32_t* weight) {
  __m256i high[4], low[4];
  for (int i = 0; i < 4; ++i) high[i] = low[i] = _mm256_setzero_si256();
  const __m256i zero = _mm256_setzero_si256();
  for (int64_t i = 0; i < count; i += 2) {
    const bool alone = i + 1 == count;  // an odd last row is paired with itself at weight 0
    const int32_t second = alone ? 0 : weight[i + 1];
    const __m256i weight_high = _mm256_set1_epi32(high_pair(weight[i], second));
    const __m256i weight_low = _mm256_set1_epi32(low_pair(weight[i], second));
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows + i * stride));
    const __m256i b =
        alone ? a : _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows + (i + 1) * stride));
    const __m256i ab_low = _mm256_unpacklo_epi8(a, b), ab_high = _mm256_unpackhi_epi8(a, b);
    const __m256i pairs[4] = {_mm256_unpacklo_epi8(ab_low, zero), _mm256_unpackhi_epi8(ab_low, zero),
                              _mm256_unpacklo_epi8(ab_high, zero), _mm256_unpackhi_epi8(ab_high, zero)};
    for (int j = 0; j < 4; ++j) {
      high[j] = add_products(high[j], pairs[j], weight_high);
      low[j] = add_products(low[j], pairs[j], weight_low);
    }
  }
  const __m256i words_low = _mm256_packs_epi32(finish(high[0], low[0]), finish(high[1], low[1]));
  const __m256i words_high = _mm256_packs_epi32(finish(high[2], low[2]), finish(high[3], low[3]));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_packus_epi16(words_low, words_high));
}

}  // namespace

void horizontal_pass(uint8_t* to, const PixelRows& from, const ResizeWeights& weights) {
  const int64_t steps = (weights.taps + 3) / 4, width = weights.size(), row_bytes = width * 3;
  std::vector<FourWeights> four(static_cast<size_t>(width * steps));
  for (int64_t x = 0; x < width; ++x)
    for (int64_t s = 0; s < steps; ++s) {
      int32_t w[4];
      for (int64_t i = 0; i < 4; ++i)
        w[i] =
            4 * s + i < weights.taps ? weights.weights[static_cast<size_t>(x * weights.taps + 4 * s + i)] : 0;
      FourWeights& step = four[static_cast<size_t>(x * steps + s)];
      for (int i = 0; i < 4; ++i) {
        step.high[i] = high_pair(w[0], w[1]);
        step.high[4 + i] = high_pair(w[2], w[3]);
        step.low[i] = low_pair(w[0], w[1]);
        step.low[4 + i] = low_pair(w[2], w[3]);
      }
    }

  // A step reads up to 9 bytes of pixels with weight 0 and 4 more past the row: rows at the very end of the
  // memory are copied to where that is allowed. The last group repeats its last row rather than having fewer.
  const int64_t used_bytes = weights.end() * 3, read_bytes = used_bytes + 13;
  std::vector<uint8_t> copies(static_cast<size_t>(kRowsAtOnce * read_bytes));
  for (int64_t y = 0; y < from.rows; y += kRowsAtOnce) {
    const uint8_t* sources[kRowsAtOnce];
    uint8_t* destinations[kRowsAtOnce];
    for (int64_t r = 0; r < kRowsAtOnce; ++r) {
      const int64_t row = y + r < from.rows ? y + r : from.rows - 1;
      sources[r] = from.data + row * from.stride;
      destinations[r] = to + row * row_bytes;
      if (from.end - sources[r] < read_bytes) {
        uint8_t* copy = copies.data() + r * read_bytes;
        std::memcpy(copy, sources[r], static_cast<size_t>(used_bytes));
        sources[r] = copy;
      }
    }
    four_rows(destinations, sources, weights, four, steps);
  }
}

void vertical_pass(uint8_t* to, const PixelRows& from, int64_t first_row, int64_t row_bytes,
                   const ResizeWeights& weights) {
  if (row_bytes < 32) return vertical_pass_plain(to, from, first_row, row_bytes, weights);
  for (int64_t y = 0; y < weights.size(); ++y) {
    const int32_t* weight = weights.weights.data() + y * weights.taps;
    const int64_t count = weights.count[static_cast<size_t>(y)];
    const uint8_t* rows = from.data + (weights.first[static_cast<size_t>(y)] - first_row) * from.stride;
    int64_t x = 0;
    for (; x + 32 <= row_bytes; x += 32)
      columns_32(to + y * row_bytes + x, rows + x, from.stride, count, weight);
    // The last block overlaps the one before it and writes the same bytes again.
    if (x < row_bytes) {
      x = row_bytes - 32;
      columns_32(to + y * row_bytes + x, rows + x, from.stride, count, weight);
    }
  }
}

#endif

}  // namespace switchback
