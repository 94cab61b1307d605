// jpeg_codes.h: the Huffman codes of a clean baseline JPEG, read faster than libjpeg-turbo reads them. For
// most photographs they are two thirds of the time of decoding.
//
// libjpeg's decompressor is made of modules. The one that turns codes into coefficients has a function,
// decode_mcu, that is called once per group of blocks (an MCU); take_over() puts its own in that place.
// Everything else (headers, inverse DCT, upsampling, colours) stays libjpeg's, so the pixels do too.
//
// What is not plain and clean (progressive or arithmetic coding, several scans, a code that does not exist, a
// marker too early) is left to libjpeg: either take_over() says no, or the reading stops and irregular() is
// true; the picture is then decoded once more without it. What is done about damage is thus libjpeg's choice
// in every case.
//
//   bits     64 of them, the next one on top; filled by eight bytes at a time where none of these is 0xFF
//   tables   the next 10 bits -> run, size and both lengths, for all but the rarest codes
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>

// clang-format off: jpeglib.h wants <cstdio> before it
#include <jpeglib.h>
// clang-format on

namespace switchback {

class JpegCodes {
 public:
  // Of a decoder that jpeg_start_decompress has started, and whose client_data points to this object. leave:
  // is called when the reading stops, and does not return. False: nothing has changed.
  bool take_over(jpeg_decompress_struct& decoder, void (*leave)(j_decompress_ptr));

  bool irregular() const { return irregular_; }

  // The codes of one table. Kept from picture to picture: nearly all have the standard's four tables.
  struct Table {
    static constexpr int kBits = 10;
    JHUFF_TBL source{};  // what the rest was made from
    std::array<uint32_t, 1 << kBits>
        codes;                      // run << 24 | size << 16 | code << 8 | code + size (lengths in bits);
                                    // 0: longer than kBits
    int32_t largest_code[17] = {};  // of each length; -1: none
    int32_t first_symbol[17] = {};  // minus the first code of this length: index of huffval
  };

 private:
  friend struct JpegCodesReader;
  const Table* dc_[10] = {};  // by block of an MCU
  const Table* ac_[10] = {};
  int component_[10] = {};
  int blocks_ = 0;
  int last_dc_[4] = {};
  uint64_t mcus_left_ = 0;
  unsigned restart_interval_ = 0, until_restart_ = 0, next_restart_ = 0;
  const uint8_t *next_ = nullptr, *end_ = nullptr;
  uint64_t bits_ = 0;
  int64_t count_ = 0, padding_ = 0;  // valid bits; of these, zeros that stand for what follows a marker
  bool irregular_ = false;
  void (*leave_)(j_decompress_ptr) = nullptr;
};

}  // namespace switchback
