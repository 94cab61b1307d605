// jpeg_colour.h: from the planes of a JPEG to RGB, equal to libjpeg's fancy upsampling and colour tables.
//
// Colour planes of half the width or height are interpolated: a sample lies between two pixels and gives 3/4
// to the nearer and 1/4 to the farther one, in each direction; the rounding alternates (1 and 2 of 4, 8 and 7
// of 16), and at the edges the outermost sample stands for the missing one.
// With cb and cr less 128 and constants of 16 fractional bits,
//   r = y + 1.402 cr,  g = y - 0.34414 cb - 0.71414 cr,  b = y + 1.772 cb
#pragma once

#include <cstdint>

namespace switchback {

// to (2 n) from (n): twice the width.
void upsample_row(uint8_t* to, const uint8_t* from, int64_t n);

// to (2 n) from two rows of (n), the nearer and the farther one: twice the width and the height.
// sums: room for n + 2 numbers.
void upsample_two_rows(uint8_t* to, const uint8_t* nearer, const uint8_t* farther, int64_t n, int16_t* sums);

// to (width, 3)
void ycc_to_rgb_plain(uint8_t* to, const uint8_t* y, const uint8_t* cb, const uint8_t* cr, int64_t width);
void ycc_to_rgb(uint8_t* to, const uint8_t* y, const uint8_t* cb, const uint8_t* cr, int64_t width);

void grey_to_rgb(uint8_t* to, const uint8_t* grey, int64_t width);

}  // namespace switchback
