// decode_webp.cpp: WebP through libwebp. Alpha is dropped without being composited, as in Pillow's
// convert("RGB").
//
// Of an animation the first frame is shown on a black canvas. libwebp's decoder refuses animations (its
// animation decoder is another library), but takes the first frame's chunks when they are cut out of the
// file, which is
//   RIFF size WEBP | VP8X ... | ANIM ... | ANMF size (frame) | ANMF ...
//   frame: x / 2, y / 2, width - 1, height - 1, duration (3 bytes each), flags (1 byte), chunks
#ifdef SWITCHBACK_WEBP
#include <webp/decode.h>

#include <algorithm>
#include <cstring>

#include "data/decoders.h"
#include "runtime/check.h"

namespace switchback {
namespace {

int64_t little_endian(std::span<const uint8_t> bytes, size_t at, size_t count) {
  int64_t value = 0;
  for (size_t i = 0; i < count; ++i) value |= static_cast<int64_t>(bytes[at + i]) << (8 * i);
  return value;
}

struct Frame {
  int64_t top = 0, left = 0;
  std::span<const uint8_t> chunks;
};

Frame first_frame(std::span<const uint8_t> bytes) {
  for (size_t at = 12; at + 8 <= bytes.size();) {
    const auto size = static_cast<size_t>(little_endian(bytes, at + 4, 4));
    if (size > bytes.size() - at - 8) fail("truncated WebP (premature end of data)");
    if (std::memcmp(bytes.data() + at, "ANMF", 4) == 0 && size > 16)
      return {2 * little_endian(bytes, at + 11, 3), 2 * little_endian(bytes, at + 8, 3),
              bytes.subspan(at + 24, size - 16)};
    at += 8 + size + (size & 1);
  }
  fail("truncated WebP (premature end of data)");
}

WebPBitstreamFeatures read_features(std::span<const uint8_t> bytes) {
  WebPBitstreamFeatures features;
  const VP8StatusCode status = WebPGetFeatures(bytes.data(), bytes.size(), &features);
  if (status == VP8_STATUS_NOT_ENOUGH_DATA) fail("truncated WebP (premature end of data)");
  if (status != VP8_STATUS_OK) fail("damaged WebP (header)");
  return features;
}

// Into the canvas at (top, left).
void decode_still(Image& to, std::span<const uint8_t> bytes, int64_t top, int64_t left) {
  const int64_t row_bytes = to.width * 3, start = top * row_bytes + left * 3;
  const size_t room = to.pixels.size() - static_cast<size_t>(start);
  if (WebPDecodeRGBInto(bytes.data(), bytes.size(), to.pixels.data() + start, room,
                        static_cast<int>(row_bytes)) != nullptr)
    return;
  // The status is not returned; ask whether all announced bytes are there.
  const bool whole = bytes.size() >= 8 && std::memcmp(bytes.data(), "RIFF", 4) == 0 &&
                     little_endian(bytes, 4, 4) + 8 <= static_cast<int64_t>(bytes.size());
  fail(whole ? "damaged WebP" : "truncated WebP (premature end of data)");
}

}  // namespace

void decode_webp(Image& to, std::span<const uint8_t> bytes, const DecodeOptions& options) {
  const WebPBitstreamFeatures features = read_features(bytes);
  allocate(to, features.height, features.width, options);
  if (features.has_animation == 0) return decode_still(to, bytes, 0, 0);
  const Frame frame = first_frame(bytes);
  const WebPBitstreamFeatures size = read_features(frame.chunks);
  if (frame.top + size.height > to.height || frame.left + size.width > to.width)
    fail("damaged WebP (frame outside the canvas)");
  std::fill(to.pixels.begin(), to.pixels.end(), uint8_t{0});
  decode_still(to, frame.chunks, frame.top, frame.left);
}

}  // namespace switchback
#endif
