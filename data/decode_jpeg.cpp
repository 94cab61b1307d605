// decode_jpeg.cpp: JPEG through libjpeg-turbo, set up as Pillow does it: accurate integer DCT, fancy
// upsampling. The codes of plain files are read by ourselves (jpeg_codes.h).
//
// libjpeg reports errors by a callback that must not return. It is left by longjmp, which skips destructors,
// so every stretch between setjmp and the library holds plain values only; what owns memory lives in the
// callers' frames. Bytes past the end are an error rather than libjpeg's own choice, a made-up end marker and
// a grey rest.
#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <cstring>

#include "data/decoders.h"
#include "data/jpeg_codes.h"
#include "runtime/check.h"

namespace switchback {
namespace {

// A progressive file may hold any number of scans, each of which costs a pass over the whole picture: hours
// of work in a megabyte. Encoders write about ten.
constexpr int kMostScans = 200;

class JpegReader : public JpegCodes {
 public:
  explicit JpegReader(std::span<const uint8_t> bytes) {
    decoder_.err = jpeg_std_error(&errors_);
    errors_.error_exit = on_error;
    errors_.emit_message = [](j_common_ptr, int) {};  // warnings: Pillow ignores them too
    decoder_.client_data = static_cast<JpegCodes*>(this);
    jpeg_create_decompress(&decoder_);
    source_.next_input_byte = bytes.data();
    source_.bytes_in_buffer = bytes.size();
    source_.init_source = [](j_decompress_ptr) {};
    source_.fill_input_buffer = on_end_of_data;
    source_.skip_input_data = skip;
    source_.resync_to_restart = jpeg_resync_to_restart;
    source_.term_source = [](j_decompress_ptr) {};
    decoder_.src = &source_;
    progress_.progress_monitor = count_scans;
    decoder_.progress = &progress_;
  }
  ~JpegReader() { jpeg_destroy_decompress(&decoder_); }
  JpegReader(const JpegReader&) = delete;
  JpegReader& operator=(const JpegReader&) = delete;

  // Each returns false after an error, which message() then tells.
  bool read_header() {
    if (setjmp(jump_) != 0) return false;
    jpeg_read_header(&decoder_, TRUE);
    return true;
  }

  bool find_output_size() {
    if (setjmp(jump_) != 0) return false;
    jpeg_calc_output_dimensions(&decoder_);
    return true;
  }

  // rows: (height, width, components of the output)
  bool read_rows(uint8_t* rows, int64_t row_bytes, bool own_codes) {
    if (setjmp(jump_) != 0) return false;
    jpeg_start_decompress(&decoder_);
    if (own_codes) take_over(decoder_, [](j_decompress_ptr decoder) { self(decoder).leave(); });
    while (decoder_.output_scanline < decoder_.output_height) {
      // Four at a time: libjpeg works in groups of 8 or 16 rows and copies less when it may write more.
      JSAMPROW pointers[4];
      const JDIMENSION left = decoder_.output_height - decoder_.output_scanline, count = left < 4 ? left : 4;
      for (JDIMENSION i = 0; i < count; ++i) pointers[i] = rows + (decoder_.output_scanline + i) * row_bytes;
      jpeg_read_scanlines(&decoder_, pointers, count);
    }
    jpeg_finish_decompress(&decoder_);  // reads up to the end marker, without which the file is truncated
    return true;
  }

  jpeg_decompress_struct& decoder() { return decoder_; }
  const char* message() const { return message_; }

 private:
  template <class Decoder>  // pointer to jpeg_common_struct or jpeg_decompress_struct
  static JpegReader& self(Decoder decoder) {
    return *static_cast<JpegReader*>(static_cast<JpegCodes*>(decoder->client_data));
  }

  [[noreturn]] void leave() { longjmp(jump_, 1); }

  static void on_error(j_common_ptr decoder) {
    char text[JMSG_LENGTH_MAX];
    decoder->err->format_message(decoder, text);
    std::snprintf(self(decoder).message_, sizeof(message_), "damaged JPEG (%s)", text);
    self(decoder).leave();
  }

  static boolean on_end_of_data(j_decompress_ptr decoder) {
    JpegReader& reader = self(decoder);
    std::strcpy(reader.message_, "truncated JPEG (premature end of data)");
    reader.leave();
  }

  static void skip(j_decompress_ptr decoder, long count) {
    if (count <= 0) return;
    jpeg_source_mgr& source = *decoder->src;
    if (static_cast<size_t>(count) > source.bytes_in_buffer) on_end_of_data(decoder);
    source.next_input_byte += count;
    source.bytes_in_buffer -= static_cast<size_t>(count);
  }

  static void count_scans(j_common_ptr decoder) {
    if (!decoder->is_decompressor ||
        reinterpret_cast<j_decompress_ptr>(decoder)->input_scan_number <= kMostScans)
      return;
    std::snprintf(self(decoder).message_, sizeof(message_), "damaged JPEG (more than %d scans)", kMostScans);
    self(decoder).leave();
  }

  jpeg_decompress_struct decoder_{};
  jpeg_error_mgr errors_{};
  jpeg_source_mgr source_{};
  jpeg_progress_mgr progress_{};
  std::jmp_buf jump_;
  char message_[JMSG_LENGTH_MAX + 32] = "";
};

// a b / 255, rounded, without a division.
int multiply_255(int a, int b) {
  const int product = a * b + 128;
  return ((product >> 8) + product) >> 8;
}

// to (pixels, 3) from inks (pixels, 4), which Adobe's programs write inverted: 255 is no ink.
void from_inverted_cmyk(std::span<uint8_t> to, std::span<const uint8_t> inks) {
  for (size_t i = 0, n = to.size() / 3; i < n; ++i) {
    const int light = inks[4 * i + 3];
    for (size_t c = 0; c < 3; ++c) {
      const int value = light - multiply_255(255 - inks[4 * i + c], light);
      to[3 * i + c] = static_cast<uint8_t>(value < 0 ? 0 : value);
    }
  }
}

// False: our own reading of the codes met something irregular; the picture is to be decoded without it.
bool decode(Image& to, std::span<const uint8_t> bytes, const DecodeOptions& options, bool own_codes) {
  JpegReader reader(bytes);
  if (!reader.read_header()) fail(reader.message());
  jpeg_decompress_struct& decoder = reader.decoder();
  const int components = decoder.num_components;
  if (components != 1 && components != 3 && components != 4)
    fail("JPEG of ", components, " components (1, 3 or 4 can be shown)");
  check_size(decoder.image_height, decoder.image_width, options);
  if (options.fast_decode_edge > 0) {
    const int64_t edge = std::min(decoder.image_height, decoder.image_width);
    for (unsigned part : {2u, 4u, 8u})
      if (edge / part >= options.fast_decode_edge) decoder.scale_num = 1, decoder.scale_denom = part;
    if (!reader.find_output_size()) fail(reader.message());
    allocate(to, decoder.output_height, decoder.output_width, options);
  } else {
    allocate(to, decoder.image_height, decoder.image_width, options);
  }
  decoder.dct_method = JDCT_ISLOW;
  decoder.do_fancy_upsampling = TRUE;
  if (components == 4) {
    decoder.out_color_space = JCS_CMYK;
    std::vector<uint8_t> inks(static_cast<size_t>(to.height * to.width * 4));
    if (!reader.read_rows(inks.data(), to.width * 4, own_codes)) {
      if (reader.irregular()) return false;
      fail(reader.message());
    }
    from_inverted_cmyk(to.pixels, inks);
  } else {
    decoder.out_color_space = JCS_RGB;  // of a grey picture libjpeg makes three equal channels
    if (!reader.read_rows(to.pixels.data(), to.width * 3, own_codes)) {
      if (reader.irregular()) return false;
      fail(reader.message());
    }
  }
  return true;
}

}  // namespace

void decode_jpeg(Image& to, std::span<const uint8_t> bytes, const DecodeOptions& options) {
  if (!options.own_jpeg_codes || !decode(to, bytes, options, true)) decode(to, bytes, options, false);
}

}  // namespace switchback
