// resize.h: Pillow's resampling, bit for bit.
//
// Separable: first every row that the result needs is resized to the new width, rounded to 8 bits, then the
// columns. With s = n / m, output pixel x of a line of n pixels resized to m is centred at
// c = (x + 0.5) s and is, over the source pixels i within the filter's support,
//   sum_i f((i + 0.5 - c) / max(s, 1)) p_i / sum_i f((i + 0.5 - c) / max(s, 1))
// so that the filter is stretched when the picture shrinks (antialiasing). The weights are rounded to 22
// fractional bits, half away from zero, and the sum is one int32 that starts at a half: exact, hence the same
// in any order.
//   bilinear   f(t) = 1 - |t|                                  |t| < 1
//   bicubic    f(t) =  1.5 |t|^3 - 2.5 |t|^2 + 1               |t| < 1
//                     -0.5 |t|^3 + 2.5 |t|^2 - 4 |t| + 2       1 <= |t| < 2
#pragma once

#include "data/image.h"

namespace switchback {

enum class Interpolation { bilinear, bicubic };

struct CropBox {
  int64_t top = 0, left = 0, height = 0, width = 0;
};

// to (height, width, 3), a new size of the part of `from` that `box` selects: torchvision's resized_crop,
// which cuts first, so that pixels outside the box have no influence. The box must lie inside the image and
// no size be 0.
void resize(Image& to, const Image& from, const CropBox& box, int64_t height, int64_t width,
            Interpolation interpolation = Interpolation::bicubic);
Image resize(const Image& from, int64_t height, int64_t width,
             Interpolation interpolation = Interpolation::bicubic);

// to (window.height, window.width, 3): the part `window` of what resize() to (height, width) would give, at
// the cost of that part: a picture of 3 x 700 whose shorter edge becomes 224 is 52266 pixels long, of which
// the model sees 224.
void resize_window(Image& to, const Image& from, const CropBox& box, int64_t height, int64_t width,
                   const CropBox& window, Interpolation interpolation);

// The definition: the formula above with one multiplication at a time. A test holds resize() equal to it.
Image resize_by_definition(const Image& from, const CropBox& box, int64_t height, int64_t width,
                           Interpolation interpolation);

}  // namespace switchback
