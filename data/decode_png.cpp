// decode_png.cpp: PNG through libpng. The library only unpacks (inflate, filters, interlacing, 1 to 4 bits to
// a byte); what a sample means is decided here, since Pillow's rules differ from libpng's (see image.h).
//
// Errors leave libpng by longjmp: see decode_jpeg.cpp. Nothing after the last row is read, as in Pillow: a
// picture whose end chunk is missing is whole.
#include <png.h>

#include <csetjmp>
#include <cstdio>
#include <cstring>

#include "data/decoders.h"
#include "runtime/check.h"

namespace switchback {
namespace {

class PngReader {
 public:
  explicit PngReader(std::span<const uint8_t> bytes) : left_(bytes) {
    png_ = png_create_read_struct(PNG_LIBPNG_VER_STRING, this, on_error, [](png_structp, png_const_charp) {});
    CHECK(png_ != nullptr, "libpng has another version than its header");
    info_ = png_create_info_struct(png_);
    if (info_ == nullptr) {
      png_destroy_read_struct(&png_, nullptr, nullptr);
      fail("out of memory");
    }
    png_set_read_fn(png_, this, read);
    png_set_user_limits(png_, 0x7fffffff, 0x7fffffff);  // max_image_pixels is the limit
    // Chunks that do not change the pixels are skipped: a damaged colour profile must not cost the sample.
    png_set_keep_unknown_chunks(png_, PNG_HANDLE_CHUNK_NEVER, nullptr, -1);
  }
  ~PngReader() { png_destroy_read_struct(&png_, &info_, nullptr); }
  PngReader(const PngReader&) = delete;
  PngReader& operator=(const PngReader&) = delete;

  // Each returns false after an error, which message() then tells.
  bool read_header() {
    if (setjmp(jump_) != 0) return false;
    png_read_info(png_, info_);
    return true;
  }

  bool unpack() {
    if (setjmp(jump_) != 0) return false;
    png_set_packing(png_);
    passes_ = png_set_interlace_handling(png_);
    png_read_update_info(png_, info_);
    return true;
  }

  // rows: (height, row_bytes). An interlaced picture comes in seven passes over the same rows.
  bool read_rows(uint8_t* rows, size_t row_bytes) {
    if (setjmp(jump_) != 0) return false;
    const png_uint_32 height = png_get_image_height(png_, info_);
    for (int pass = 0; pass < passes_; ++pass)
      for (png_uint_32 y = 0; y < height; ++y) png_read_row(png_, rows + y * row_bytes, nullptr);
    return true;
  }

  png_structp png() { return png_; }
  png_infop info() { return info_; }
  const char* message() const { return message_; }

 private:
  [[noreturn]] static void on_error(png_structp png, png_const_charp text) {
    PngReader& reader = *static_cast<PngReader*>(png_get_error_ptr(png));
    if (reader.message_[0] == 0) std::snprintf(reader.message_, sizeof(message_), "damaged PNG (%s)", text);
    longjmp(reader.jump_, 1);
  }

  static void read(png_structp png, png_bytep to, size_t count) {
    PngReader& reader = *static_cast<PngReader*>(png_get_io_ptr(png));
    if (count > reader.left_.size()) {
      std::strcpy(reader.message_, "truncated PNG (premature end of data)");
      png_error(png, reader.message_);
    }
    std::memcpy(to, reader.left_.data(), count);
    reader.left_ = reader.left_.subspan(count);
  }

  std::span<const uint8_t> left_;
  png_structp png_ = nullptr;
  png_infop info_ = nullptr;
  int passes_ = 1;
  std::jmp_buf jump_;
  char message_[160] = "";
};

struct Palette {
  uint8_t colours[256][3];
};

// What the file does not name is a grey ramp, as in Pillow; libpng would leave it black.
Palette read_palette(PngReader& reader) {
  Palette palette;
  for (int i = 0; i < 256; ++i)
    for (int c = 0; c < 3; ++c) palette.colours[i][c] = static_cast<uint8_t>(i);
  png_colorp entries = nullptr;
  int count = 0;
  if (png_get_PLTE(reader.png(), reader.info(), &entries, &count) != 0)
    for (int i = 0; i < count; ++i) {
      palette.colours[i][0] = entries[i].red;
      palette.colours[i][1] = entries[i].green;
      palette.colours[i][2] = entries[i].blue;
    }
  return palette;
}

// to (pixels, 3) from samples (pixels, channels) of one byte each, or of two with the high one first.
void to_rgb(std::span<uint8_t> to, std::span<const uint8_t> samples, int colour_type, int depth,
            const Palette& palette) {
  const bool wide = depth == 16;
  const size_t step = wide ? 2 : 1, pixels = to.size() / 3;
  for (size_t i = 0; i < pixels; ++i) {
    uint8_t* pixel = to.data() + 3 * i;
    switch (colour_type) {
      case PNG_COLOR_TYPE_GRAY: {
        const uint8_t* sample = samples.data() + i * step;
        // 16 bits are clipped, since Pillow reads them as integers; 1, 2 and 4 bits are scaled.
        int grey = wide ? (sample[0] != 0 ? 255 : sample[1]) : *sample;
        if (depth < 8) grey = grey * 255 / ((1 << depth) - 1);
        pixel[0] = pixel[1] = pixel[2] = static_cast<uint8_t>(grey);
        break;
      }
      case PNG_COLOR_TYPE_GRAY_ALPHA:
        pixel[0] = pixel[1] = pixel[2] = samples[i * 2 * step];
        break;
      case PNG_COLOR_TYPE_PALETTE:
        std::memcpy(pixel, palette.colours[samples[i]], 3);
        break;
      default: {
        const size_t channels = colour_type == PNG_COLOR_TYPE_RGB_ALPHA ? 4 : 3;
        for (size_t c = 0; c < 3; ++c) pixel[c] = samples[(i * channels + c) * step];
      }
    }
  }
}

}  // namespace

void decode_png(Image& to, std::span<const uint8_t> bytes, const DecodeOptions& options) {
  PngReader reader(bytes);
  if (!reader.read_header()) fail(reader.message());
  allocate(to, png_get_image_height(reader.png(), reader.info()),
           png_get_image_width(reader.png(), reader.info()), options);
  const int colour_type = png_get_color_type(reader.png(), reader.info());
  const int depth = png_get_bit_depth(reader.png(), reader.info());
  const Palette palette = read_palette(reader);
  if (!reader.unpack()) fail(reader.message());
  const size_t row_bytes = png_get_rowbytes(reader.png(), reader.info());
  if (colour_type == PNG_COLOR_TYPE_RGB && depth == 8) {
    if (!reader.read_rows(to.pixels.data(), row_bytes)) fail(reader.message());
    return;
  }
  std::vector<uint8_t> samples(static_cast<size_t>(to.height) * row_bytes);
  if (!reader.read_rows(samples.data(), row_bytes)) fail(reader.message());
  to_rgb(to.pixels, samples, colour_type, depth, palette);
}

}  // namespace switchback
