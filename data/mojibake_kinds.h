// mojibake_kinds.h: the kinds of characters that wrongly decoded text consists of, and the single-byte
// encodings that it was decoded with. Shared by the detection and the repair; tables by
// scripts/make_mojibake_tables.py.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>

namespace switchback::mojibake {

struct KindOf {
  char16_t character;
  uint32_t kinds;  // a set of Kind
};
#include "data/mojibake_tables.inc"

inline uint32_t kinds_of(char32_t c) {
  if (c == ' ') return kKinds[0].kinds;
  if (c < 0x80 || c > 0xffff) return 0;
  const auto* place =
      std::lower_bound(std::begin(kKinds), std::end(kKinds), c,
                       [](const KindOf& entry, char32_t value) { return entry.character < value; });
  return place != std::end(kKinds) && place->character == c ? place->kinds : 0;
}

}  // namespace switchback::mojibake
