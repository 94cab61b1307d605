// image.h: an RGB picture, and decoding one from the bytes of a file.
//
// The pixels are, bit for bit, those of Pillow's Image.open(file).convert("RGB"), since that is what the
// published CLIP models were trained on:
//   JPEG   grey and YCbCr with libjpeg-turbo's accurate inverse DCT and fancy upsampling; four components are
//          taken as Adobe writes them (inverted CMYK): r = (255 - k) - (255 - k) c / 255
//   PNG    every colour type and depth; alpha is dropped, not composited; 16-bit colour keeps its high byte,
//          but 16-bit grey is clipped to 255; a palette shorter than its indices goes on as a grey ramp
//   WebP   when built with libwebp; of an animation the first frame, on black
// The EXIF orientation is not applied: neither open_clip nor Pillow's convert does.
//
// What cannot be decoded whole is an error, never a picture with a grey lower half: one line, e.g. `truncated
// JPEG (premature end of data)`, to which the caller adds the name of the file.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace switchback {

struct Image {
  int64_t height = 0, width = 0;
  std::vector<uint8_t> pixels;  // (height, width, 3), red green blue

  const uint8_t* row(int64_t y) const { return pixels.data() + y * width * 3; }
  uint8_t* row(int64_t y) { return pixels.data() + y * width * 3; }
};

struct DecodeOptions {
  // Read in the header, before anything is allocated: a picture of a few kilobytes may claim 65535 x 65535.
  int64_t max_image_pixels = 25'000'000;
  // Above 0: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size (straight from its DCT coefficients,
  // several times faster), as long as its shorter edge keeps at least this many pixels. The result is a
  // smaller picture, no longer Pillow's bit for bit after resizing (docs/data.md has the differences).
  int64_t fast_decode_edge = 0;
  // Read a JPEG's codes by ourselves where it is plain and clean (jpeg_codes.h): the same pixels, sooner.
  bool own_jpeg_codes = true;
};

struct ImageSize {
  int64_t height = 0, width = 0;
};

Image decode_image(std::span<const uint8_t> bytes, const DecodeOptions& options = {});

// The same into an existing image, whose memory is reused.
void decode_image(Image& to, std::span<const uint8_t> bytes, const DecodeOptions& options = {});

}  // namespace switchback
