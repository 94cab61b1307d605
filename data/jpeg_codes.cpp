#include "data/jpeg_codes.h"

#include <algorithm>
#include <cstring>
#include <memory>

#if __has_include(<jpegint.h>) && defined(LIBJPEG_TURBO_VERSION_NUMBER)
#include <jpegint.h>
#define SWITCHBACK_JPEG_CODES
#endif

namespace switchback {

#ifndef SWITCHBACK_JPEG_CODES

bool JpegCodes::take_over(jpeg_decompress_struct&, void (*)(j_decompress_ptr)) { return false; }

#else

namespace {

// Place of the k-th coefficient in a block. A run that leads beyond the last one is found out afterwards.
constexpr uint8_t kPlaces[64 + 16] = {0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,
                                      12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6,  7,  14, 21, 28,
                                      35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51,
                                      58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
                                      63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63};

uint32_t entry_of(int symbol, int length) {
  const uint32_t run = static_cast<uint32_t>(symbol) >> 4, size = static_cast<uint32_t>(symbol) & 15;
  const uint32_t code = static_cast<uint32_t>(length);
  return run << 24 | size << 16 | code << 8 | (code + size);
}

// False where the lengths are no prefix code (libjpeg has its own words for that).
bool make_table(JpegCodes::Table& t, const JHUFF_TBL& source, bool dc) {
  constexpr int kBits = JpegCodes::Table::kBits;
  t.source = source;
  t.codes.fill(0);
  int code = 0, symbol = 0;
  for (int length = 1; length <= 16; ++length, code <<= 1) {
    t.first_symbol[length] = symbol - code;
    for (int i = 0; i < source.bits[length]; ++i, ++code, ++symbol) {
      if (code >= 1 << length || symbol >= 256) return false;
      if (dc && source.huffval[symbol] > 15) return false;
      if (length > kBits) continue;
      std::fill_n(t.codes.begin() + (code << (kBits - length)), 1 << (kBits - length),
                  entry_of(source.huffval[symbol], length));
    }
    t.largest_code[length] = source.bits[length] > 0 ? code - 1 : -1;
  }
  return true;
}

// The table made from `source`, of this thread's four; null where it cannot be one.
const JpegCodes::Table* table_of(const JHUFF_TBL* source, bool dc, int slot) {
  thread_local std::unique_ptr<JpegCodes::Table> kept[2][4];
  if (!source || slot < 0 || slot >= 4) return nullptr;
  std::unique_ptr<JpegCodes::Table>& table = kept[dc][slot];
  if (table && std::memcmp(table->source.bits, source->bits, sizeof source->bits) == 0 &&
      std::memcmp(table->source.huffval, source->huffval, sizeof source->huffval) == 0)
    return table.get();
  if (!table) table = std::make_unique<JpegCodes::Table>();
  if (make_table(*table, *source, dc)) return table.get();
  table.reset();
  return nullptr;
}

}  // namespace

// The bits, in registers while an MCU is read: nothing here may have its address taken.
struct JpegCodesReader {
  using Table = JpegCodes::Table;

  struct Bits {
    uint64_t bits;        // the next one on top
    int64_t count;        // of them
    const uint8_t* next;  // byte
  };

  // At least 32 bits: a code of 16 and a number of 15.
  [[gnu::always_inline]] static Bits refill(Bits b, JpegCodes& codes) {
    if (b.count >= 32) return b;
    if (codes.end_ - b.next >= 8) {
      uint64_t word;
      std::memcpy(&word, b.next, 8);
      word = __builtin_bswap64(word);
      constexpr uint64_t ones = 0x0101010101010101u, tops = 0x8080808080808080u;
      if (((~word - ones) & word & tops) == 0) {  // no byte is 0xFF
        const int64_t bytes = (63 - b.count) >> 3;
        return {b.bits | word >> b.count, b.count + 8 * bytes, b.next + bytes};
      }
    }
    return refill_by_bytes(b.bits, b.count, b.next, codes);
  }

  // Three numbers and no Bits, which would be kept in memory for this call alone.
  [[gnu::noinline, gnu::cold]] static Bits refill_by_bytes(uint64_t bits, int64_t count, const uint8_t* next,
                                                           JpegCodes& codes) {
    Bits b{bits, count, next};
    while (b.count <= 56) {
      uint64_t byte = 0;
      if (b.next < codes.end_ && *b.next != 0xFF) {
        byte = *b.next++;
      } else if (codes.end_ - b.next >= 2 && b.next[1] == 0) {
        byte = 0xFF;  // written as FF 00
        b.next += 2;
      } else {  // a marker, or the end
        codes.padding_ += 8;
      }
      b.bits |= byte << (56 - b.count);
      b.count += 8;
    }
    return b;
  }

  // The entry for the code that comes next; 0: there is no such code.
  [[gnu::always_inline]] static uint32_t code(const Bits& b, const Table& t) {
    const uint32_t entry = t.codes[b.bits >> (64 - Table::kBits)];
    return entry != 0 ? entry : long_code(b.bits, t);
  }
  [[gnu::noinline, gnu::cold]] static uint32_t long_code(uint64_t bits, const Table& t) {
    for (int length = Table::kBits + 1; length <= 16; ++length) {
      const int code = static_cast<int>(bits >> (64 - length));
      if (code <= t.largest_code[length])
        return entry_of(t.source.huffval[(code + t.first_symbol[length]) & 255], length);
    }
    return 0;
  }

  // The number after a code of `entry`, which has at least one bit: those that begin with 0 are negative.
  [[gnu::always_inline]] static int number(const Bits& b, uint32_t entry) {
    const uint64_t bits = b.bits << (entry >> 8 & 255);
    const uint32_t size = entry >> 16 & 255;
    const int64_t negative = ~static_cast<int64_t>(bits) >> 63;  // all ones, or 0
    return static_cast<int>(static_cast<int64_t>(bits >> (64 - size)) +
                            (negative & (1 - (int64_t{1} << size))));
  }

  [[gnu::always_inline]] static void drop(Bits& b, uint32_t entry) {
    b.bits <<= entry & 255;
    b.count -= entry & 255;
  }

  // The coefficients of one block. False: no such code, a number out of range, too many coefficients.
  [[gnu::always_inline]] static bool block(Bits& b, JpegCodes& codes, JCOEF* to, const Table& dc,
                                           const Table& ac, int& last) {
    b = refill(b, codes);
    uint32_t entry = code(b, dc);
    if (entry == 0) return false;
    if ((entry >> 16 & 255) != 0) last += number(b, entry);
    drop(b, entry);
    if (last != static_cast<JCOEF>(last)) return false;
    to[0] = static_cast<JCOEF>(last);

    uint32_t k = 1;
    while (k < 64) {
      b = refill(b, codes);
      entry = code(b, ac);
      k += entry >> 24;
      if ((entry >> 16 & 255) != 0) {
        to[kPlaces[k]] = static_cast<JCOEF>(number(b, entry));
      } else if (entry >> 24 != 15) {  // the rest is zero, or there is no such code
        drop(b, entry);
        return entry != 0;
      }
      drop(b, entry);
      ++k;
    }
    return k == 64;
  }

  // At a restart marker: nothing but the end of a byte may precede it.
  static bool restart(Bits& b, JpegCodes& codes) {
    const bool here =
        codes.end_ - b.next >= 2 && b.next[0] == 0xFF && b.next[1] == 0xD0 + codes.next_restart_;
    if (!here || b.count - codes.padding_ >= 8) return false;
    b = {0, 0, b.next + 2};
    codes.padding_ = 0;
    codes.next_restart_ = (codes.next_restart_ + 1) & 7;
    codes.until_restart_ = codes.restart_interval_;
    for (int& dc : codes.last_dc_) dc = 0;
    return true;
  }

  static boolean decode_mcu(j_decompress_ptr decoder, JBLOCKROW* to) {
    JpegCodes& codes = *static_cast<JpegCodes*>(decoder->client_data);
    Bits b{codes.bits_, codes.count_, codes.next_};
    bool clean = codes.restart_interval_ == 0 || codes.until_restart_ != 0 || restart(b, codes);
    for (int i = 0; i < codes.blocks_ && clean; ++i) {
      int last = codes.last_dc_[codes.component_[i]];
      clean = block(b, codes, to[i][0], *codes.dc_[i], *codes.ac_[i], last);
      codes.last_dc_[codes.component_[i]] = last;
    }
    if (!clean || b.count < codes.padding_) {
      codes.irregular_ = true;
      codes.leave_(decoder);
    }
    codes.bits_ = b.bits, codes.count_ = b.count, codes.next_ = b.next;
    --codes.until_restart_;
    if (--codes.mcus_left_ == 0) {  // libjpeg looks for the marker that follows
      decoder->src->next_input_byte = codes.next_;
      decoder->src->bytes_in_buffer = static_cast<size_t>(codes.end_ - codes.next_);
    }
    return TRUE;
  }
};

bool JpegCodes::take_over(jpeg_decompress_struct& decoder, void (*leave)(j_decompress_ptr)) {
  if (decoder.progressive_mode || decoder.arith_code || decoder.data_precision != 8 ||
      decoder.comps_in_scan != decoder.num_components || decoder.blocks_in_MCU > 10)
    return false;
  blocks_ = decoder.blocks_in_MCU;
  for (int b = 0; b < blocks_; ++b) {
    component_[b] = decoder.MCU_membership[b];
    const jpeg_component_info& component = *decoder.cur_comp_info[component_[b]];
    dc_[b] = table_of(decoder.dc_huff_tbl_ptrs[component.dc_tbl_no], true, component.dc_tbl_no);
    ac_[b] = table_of(decoder.ac_huff_tbl_ptrs[component.ac_tbl_no], false, component.ac_tbl_no);
    if (!dc_[b] || !ac_[b]) return false;
  }
  mcus_left_ = static_cast<uint64_t>(decoder.MCUs_per_row) * decoder.MCU_rows_in_scan;
  restart_interval_ = until_restart_ = decoder.restart_interval;
  next_ = decoder.src->next_input_byte;
  end_ = next_ + decoder.src->bytes_in_buffer;
  leave_ = leave;
  decoder.entropy->decode_mcu = JpegCodesReader::decode_mcu;
  return true;
}

#endif

}  // namespace switchback
