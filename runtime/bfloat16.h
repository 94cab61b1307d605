// bfloat16.h: the upper 16 bits of an IEEE float. Conversion from float rounds to nearest, ties to even;
// NaN stays NaN (quiet). Arithmetic is done in float: there are no operators on purpose.
#pragma once

#include <bit>
#include <cstdint>

namespace switchback {

struct bfloat16 {
  uint16_t bits = 0;

  bfloat16() = default;
  explicit bfloat16(float value) {
    uint32_t u = std::bit_cast<uint32_t>(value);
    bits = (u & 0x7fffffffu) > 0x7f800000u ? static_cast<uint16_t>((u >> 16) | 0x40u)  // keep it a NaN
                                           : static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
  explicit operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
  explicit operator double() const { return static_cast<float>(*this); }
};
static_assert(sizeof(bfloat16) == 2);

}  // namespace switchback
