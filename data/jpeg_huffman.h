// jpeg_huffman.h: the entropy code of a baseline JPEG, read with one table look-up per coefficient.
//
// A block is one DC symbol and AC symbols. A symbol is a Huffman code of 1 to 16 bits, for (run of zeros,
// size), and `size` bits of value: v, or v - 2^size + 1 when v's first bit is 0. Code and value mostly have
// at most 11 bits together, so a table over the next 11 bits tells the value, the run and the length at once.
// Two thirds of the time of decoding a photograph are spent here.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>

namespace switchback {

// From zigzag order to place in the block (row * 8 + column). Places 64 and up are the junk behind the block,
// where an end-of-block symbol writes: one branch less per symbol.
extern const std::array<uint8_t, 256> kZigzag;

class HuffmanTable {
 public:
  static constexpr int kLookupBits = 11;
  static constexpr int kEndOfBlock = 128;  // the run that ends a block: beyond anything a real run reaches

  // An entry: consumed bits (0 to 6), "the value's bits follow" (7), run (8 to 15), value, or size of the
  // value that follows (16 to 31). kLong, which has bit 7 too: the code is longer than 11 bits, or there is
  // none.
  static constexpr uint32_t kValueFollows = 0x80, kLong = kValueFollows;
  uint32_t look_up(uint64_t bits) const { return entries_[bits >> (64 - kLookupBits)]; }

  // The same for codes of 12 to 16 bits, of which the value always follows. kLong: no such code.
  uint32_t look_up_long(uint64_t bits) const;

  // segment: 16 counts of codes per length, then the symbols (ITU T.81, B.2.4.2). False if that is no prefix
  // code, or has sizes that 8-bit pictures do not have. A table is kept when the next file brings the same
  // one, as most do.
  bool build(std::span<const uint8_t> segment, bool dc);

 private:
  std::array<uint32_t, size_t{1} << kLookupBits> entries_{};
  std::array<uint8_t, 16 + 256> segment_{};
  size_t segment_size_ = 0;
  bool dc_ = false;
  // Per length: the code after the last of that length, shifted to 16 bits; what, added to a code, gives the
  // index of its symbol.
  std::array<uint32_t, 17> end_{};
  std::array<int32_t, 17> offset_{};
};

// Bits of one segment of the scan, in which FF 00 was replaced by FF. Reads on past the end (the memory there
// must be readable for 256 bytes); overrun() then says so.
class BitReader {
 public:
  BitReader(const uint8_t* begin, const uint8_t* end) : begin_(begin), next_(begin), end_(end) {}

  // Afterwards at least 56 bits are there: two symbols.
  void refill() {
    uint64_t word;
    std::memcpy(&word, next_, 8);
    bits_ |= __builtin_bswap64(word) >> count_;
    next_ += (63 - count_) >> 3;
    count_ |= 56;
  }
  uint64_t bits() const { return bits_; }  // the next bit is the highest
  void skip(int n) {
    bits_ <<= n;
    count_ -= n;
  }
  bool overrun() const { return (next_ - begin_) * 8 - count_ > (end_ - begin_) * 8; }

 private:
  const uint8_t *begin_, *next_, *end_;
  uint64_t bits_ = 0;
  int count_ = 0;
};

enum class BlockKind { damaged, dc_only, full };

// block: 64 zeros and one more place, in the order of rows. Adds to `dc` and stores it.
BlockKind decode_block(int16_t* block, BitReader& reader, const HuffmanTable& dc_table,
                       const HuffmanTable& ac_table, int& dc);

}  // namespace switchback
