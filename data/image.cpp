// image.cpp: picks the decoder by the first bytes of the file; its name is not looked at, since shards are
// full of PNG files called .jpg.
#include "data/image.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <string_view>

#include "data/decoders.h"
#include "runtime/check.h"

namespace switchback {
namespace {

bool starts_with(std::span<const uint8_t> bytes, std::string_view magic, size_t at = 0) {
  return bytes.size() >= at + magic.size() && std::memcmp(bytes.data() + at, magic.data(), magic.size()) == 0;
}

constexpr int64_t kLongestSide = 1'000'000;

// "3c 68 74 6d" tells whoever reads the log that the picture is a web page.
std::string first_bytes(std::span<const uint8_t> bytes) {
  std::string text;
  for (size_t i = 0; i < bytes.size() && i < 4; ++i) {
    const char* digits = "0123456789abcdef";
    if (i > 0) text += ' ';
    text += digits[bytes[i] >> 4];
    text += digits[bytes[i] & 15];
  }
  return text;
}

}  // namespace

void check_size(int64_t height, int64_t width, const DecodeOptions& options) {
  if (height <= 0 || width <= 0) fail("image without pixels (", width, " x ", height, ")");
  // The tables of a resize grow with the longest side; nobody's photograph is a million pixels long.
  if (std::max(height, width) > kLongestSide) fail("image too long (", width, " x ", height, " pixels)");
  // Sizes in headers are at most 2^31 - 1, so the product cannot overflow.
  if (width * height > options.max_image_pixels)
    fail("image too large (", width, " x ", height, " = ", width * height, " pixels, the limit is ",
         options.max_image_pixels, ")");
}

void allocate(Image& to, int64_t height, int64_t width, const DecodeOptions& options) {
  check_size(height, width, options);
  to.height = height;
  to.width = width;
  to.pixels.resize(static_cast<size_t>(height * width * 3));
}

void decode_image(Image& to, std::span<const uint8_t> bytes, const DecodeOptions& options) {
  if (bytes.empty()) fail("empty image (0 bytes)");
  if (starts_with(bytes, "\xFF\xD8\xFF")) return decode_jpeg(to, bytes, options);
  if (starts_with(bytes, "\x89PNG\r\n\x1A\n")) return decode_png(to, bytes, options);
  if (starts_with(bytes, "RIFF") && starts_with(bytes, "WEBP", 8)) {
#ifdef SWITCHBACK_WEBP
    return decode_webp(to, bytes, options);
#else
    fail("WebP image, but this program was built without libwebp");
#endif
  }
  if (starts_with(bytes, "GIF8")) fail("GIF image: only JPEG, PNG and WebP are decoded");
  fail("not an image in JPEG, PNG or WebP format (first bytes ", first_bytes(bytes), ")");
}

Image decode_image(std::span<const uint8_t> bytes, const DecodeOptions& options) {
  Image image;
  decode_image(image, bytes, options);
  return image;
}

}  // namespace switchback
