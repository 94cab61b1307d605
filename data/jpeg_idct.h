// jpeg_idct.h: the inverse cosine transform of a block, equal to libjpeg's accurate integer one ("islow").
//
// Loeffler, Ligtenberg and Moschytz's factorisation is linear, so that it may be written out as the 8 x 8
// integer matrix it amounts to, with constants of 13 fractional bits: products and sums in int32 are exact in
// any order. Rounding is fixed: columns first, to 2 fractional bits, then rows, to integers; 128 is added and
// the result clipped to 0..255.
#pragma once

#include <cstdint>

namespace switchback {

// What bounds every intermediate value to 16 bits, so that libjpeg's vector code, the plain one and this one
// agree: the sum of the absolute dequantised coefficients. Pictures of 8 bits reach 8192 in theory and 4000
// in noise.
constexpr int kIdctMagnitudeLimit = 5700;

// to: 8 rows of 8 bytes, `stride` apart. block (8, 8): quantised coefficients; quantisers (8, 8).
// False, and nothing useful written, when the magnitude limit is passed.
bool idct_plain(uint8_t* to, int64_t stride, const int16_t* block, const uint16_t* quantisers);
bool idct(uint8_t* to, int64_t stride, const int16_t* block, const uint16_t* quantisers);

// The same for a block that is 0 but for its first coefficient.
bool idct_dc_only(uint8_t* to, int64_t stride, int16_t dc, uint16_t quantiser);

}  // namespace switchback
