// jpeg_baseline.h: the JPEGs that nearly everybody has, decoded faster than libjpeg-turbo does it, to the
// same bytes.
//
// Baseline Huffman code, 8 bits, grey or YCbCr in one scan, colour at 4:4:4, 4:2:2 (halved across) or 4:2:0.
// Everything else, and everything that is damaged in the least, is left to libjpeg (decode_jpeg.cpp), which
// is also the definition that tests hold this decoder against: so an error can only ever cost time.
//
// Where the time goes, and what is done about it:
//   entropy code    2/3 in libjpeg-turbo   one look-up for code and value; escapes removed in a pass before
//   transform, colour                      AVX2; planes of the whole picture, which fit in the cache
#pragma once

#include "data/image.h"

namespace switchback {

// False if the file is of another kind or damaged: `to` then holds nothing useful. Fails only on
// max_image_pixels.
bool decode_baseline_jpeg(Image& to, std::span<const uint8_t> bytes, const DecodeOptions& options);

}  // namespace switchback
