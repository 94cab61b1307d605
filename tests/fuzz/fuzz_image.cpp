// JPEG, PNG and WebP: header paths and whole pictures of at most 65,536 pixels, plain and fast, a JPEG's
// codes read by ourselves and by libjpeg; then the crops.
#include "data/augment.h"
#include "runtime/philox.h"
#include "tests/fuzz/fuzz.h"

using namespace switchback;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  DecodeOptions options;
  options.max_image_pixels = 1 << 16;
  if (data[0] & 1) options.fast_decode_edge = 8;
  Image image, plain;
  bool decoded = false, decoded_plain = false;
  refusing([&] {
    decode_image(image, {data + 1, size - 1}, options);
    decoded = true;
  });
  options.own_jpeg_codes = false;
  refusing([&] {
    decode_image(plain, {data + 1, size - 1}, options);
    decoded_plain = true;
  });
  if (decoded != decoded_plain) std::abort();
  if (!decoded) return 0;
  if (image.pixels != plain.pixels) std::abort();  // of a JPEG whose codes libjpeg has read
  if (image.pixels.size() != static_cast<size_t>(image.height * image.width * 3)) std::abort();
  refusing([&] {
    PhiloxStream random(1, RandomPurpose::augmentation, size);
    train_transform(image, 8, {}, random);
    evaluation_transform(image, 8, static_cast<ResizeMode>(data[0] / 2 % 3));
  });
  return 0;
}
