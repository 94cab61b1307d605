#include "data/png_writer.h"

#include <png.h>

#include "runtime/check.h"

namespace switchback {
namespace {

void append(png_structp png, png_bytep bytes, png_size_t size) {
  auto& to = *static_cast<std::vector<uint8_t>*>(png_get_io_ptr(png));
  to.insert(to.end(), bytes, bytes + size);
}

// libpng would longjmp. Throwing through it leaks nothing here, since Writer owns the structs.
[[noreturn]] void raise(png_structp, png_const_charp message) { fail("cannot encode a PNG: ", message); }

struct Writer {
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, nullptr, raise, nullptr);
  png_infop info = png ? png_create_info_struct(png) : nullptr;
  ~Writer() { png_destroy_write_struct(&png, &info); }
};

}  // namespace

std::vector<uint8_t> encode_png(std::span<const uint8_t> pixels, int64_t height, int64_t width,
                                int channels) {
  CHECK(height > 0 && width > 0 && (channels == 1 || channels == 3), "png of ", height, " x ", width, " x ",
        channels);
  CHECK(static_cast<int64_t>(pixels.size()) == height * width * channels, pixels.size(),
        " bytes for a picture of ", height, " x ", width, " x ", channels);
  std::vector<uint8_t> bytes;
  Writer writer;
  if (!writer.info) fail("cannot encode a PNG: libpng did not start");
  png_set_write_fn(writer.png, &bytes, append, nullptr);
  png_set_IHDR(writer.png, writer.info, static_cast<png_uint_32>(width), static_cast<png_uint_32>(height), 8,
               channels == 1 ? PNG_COLOR_TYPE_GRAY : PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
               PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  png_write_info(writer.png, writer.info);
  for (int64_t y = 0; y < height; ++y) png_write_row(writer.png, pixels.data() + y * width * channels);
  png_write_end(writer.png, writer.info);
  return bytes;
}

}  // namespace switchback
