// jpeg_huffman.cpp: the tables, and the loop over the coefficients of a block.
#include "data/jpeg_huffman.h"

namespace switchback {
namespace {

constexpr std::array<uint8_t, 256> make_zigzag() {
  std::array<uint8_t, 256> places{};
  for (auto& place : places) place = 64;
  int row = 0, column = 0;
  for (size_t i = 0; i < 64; ++i) {
    places[i] = static_cast<uint8_t>(row * 8 + column);
    const bool up = (row + column) % 2 == 0;
    if (up && column == 7)
      ++row;
    else if (up && row == 0)
      ++column;
    else if (up)
      --row, ++column;
    else if (row == 7)
      ++column;
    else if (column == 0)
      ++row;
    else
      ++row, --column;
  }
  return places;
}

// The value whose `size` bits are the highest of `bits`.
int32_t extend(uint64_t bits, int size) {
  if (size == 0) return 0;
  const auto value = static_cast<int32_t>(bits >> (64 - size));
  return value >> (size - 1) != 0 ? value : value - (1 << size) + 1;
}

constexpr uint32_t entry(int bits, bool value_follows, int run, int value) {
  return static_cast<uint32_t>(bits) | (value_follows ? HuffmanTable::kValueFollows : 0) |
         static_cast<uint32_t>(run) << 8 | static_cast<uint32_t>(value) << 16;
}

struct Symbol {
  int run, size;
};

Symbol split(uint8_t symbol, bool dc) {
  if (dc) return {0, symbol};
  // 0x00 ends a block, 0xF0 is 16 zeros; other symbols of size 0 are undefined: libjpeg ends there.
  if ((symbol & 15) == 0 && symbol != 0xF0) return {HuffmanTable::kEndOfBlock, 0};
  return {symbol >> 4, symbol & 15};
}

}  // namespace

const std::array<uint8_t, 256> kZigzag = make_zigzag();

bool HuffmanTable::build(std::span<const uint8_t> segment, bool dc) {
  if (segment.size() > segment_.size()) return false;
  if (dc == dc_ && segment.size() == segment_size_ &&
      std::memcmp(segment.data(), segment_.data(), segment_size_) == 0)
    return true;
  segment_size_ = 0;  // no valid table until the end is reached
  entries_.fill(kLong);
  uint32_t code = 0;
  size_t index = 0;
  const std::span<const uint8_t> symbols = segment.subspan(16);
  for (int length = 1; length <= 16; ++length) {
    code <<= 1;
    offset_[static_cast<size_t>(length)] = static_cast<int32_t>(index) - static_cast<int32_t>(code);
    for (int i = 0; i < segment[static_cast<size_t>(length - 1)]; ++i, ++code, ++index) {
      if (code >= (1u << length)) return false;
      const Symbol symbol = split(symbols[index], dc);
      if (symbol.size > (dc ? 11 : 10)) return false;
      if (length > kLookupBits) continue;
      // Every continuation of the code within 11 bits, with the value where it is complete.
      const int rest = kLookupBits - length;
      const bool follows = symbol.size > rest;
      for (uint32_t tail = 0; tail < (1u << rest); ++tail) {
        const uint64_t value_bits = rest == 0 ? 0 : static_cast<uint64_t>(tail) << (64 - rest);
        entries_[code << rest | tail] =
            follows ? entry(length, true, symbol.run, symbol.size)
                    : entry(length + symbol.size, false, symbol.run, extend(value_bits, symbol.size));
      }
    }
    end_[static_cast<size_t>(length)] = code << (16 - length);
  }
  std::memcpy(segment_.data(), segment.data(), segment.size());
  segment_size_ = segment.size();
  dc_ = dc;
  return true;
}

uint32_t HuffmanTable::look_up_long(uint64_t bits) const {
  const auto next_16 = static_cast<uint32_t>(bits >> 48);
  for (int length = kLookupBits + 1; length <= 16; ++length) {
    if (next_16 >= end_[static_cast<size_t>(length)]) continue;
    const int32_t index =
        static_cast<int32_t>(next_16 >> (16 - length)) + offset_[static_cast<size_t>(length)];
    if (index < 0 || index + 16 >= static_cast<int32_t>(segment_size_)) return kLong;
    const Symbol symbol = split(segment_[static_cast<size_t>(16 + index)], dc_);
    return entry(length, true, symbol.run, symbol.size);
  }
  return kLong;
}

BlockKind decode_block(int16_t* block, BitReader& shared, const HuffmanTable& dc_table,
                       const HuffmanTable& ac_table, int& dc) {
  BitReader reader = shared;  // in registers; written back at the end
  reader.refill();
  // Returns the value and adds the run to k.
  const auto take = [&reader](const HuffmanTable& table, int& k, int& value) {
    uint32_t found = table.look_up(reader.bits());
    if ((found & HuffmanTable::kValueFollows) != 0) [[unlikely]] {
      if (found == HuffmanTable::kLong) found = table.look_up_long(reader.bits());
      if (found == HuffmanTable::kLong) return false;
      reader.skip(static_cast<int>(found & 0x7f));
      const int size = static_cast<int>(found >> 16);
      value = extend(reader.bits(), size);
      reader.skip(size);
    } else {
      reader.skip(static_cast<int>(found & 0x7f));
      value = static_cast<int32_t>(found) >> 16;
    }
    k += static_cast<int>(found >> 8 & 0xff);
    return true;
  };

  int k = 0, value = 0;
  if (!take(dc_table, k, value)) return BlockKind::damaged;
  dc += value;
  if (dc < -2048 || dc > 2047) return BlockKind::damaged;  // more than 8-bit pictures have
  block[0] = static_cast<int16_t>(dc);
  for (k = 1; k < 64;) {
    reader.refill();
    if (!take(ac_table, k, value)) return BlockKind::damaged;
    block[kZigzag[static_cast<size_t>(k)]] = static_cast<int16_t>(value);
    if (++k >= 64) break;
    if (!take(ac_table, k, value)) return BlockKind::damaged;
    block[kZigzag[static_cast<size_t>(k)]] = static_cast<int16_t>(value);
    ++k;
  }
  // A run that leads past the block is damage; only the end-of-block symbol goes further.
  if (k > 64 && k < HuffmanTable::kEndOfBlock) return BlockKind::damaged;
  shared = reader;
  return k == HuffmanTable::kEndOfBlock + 2 ? BlockKind::dc_only : BlockKind::full;
}

}  // namespace switchback
