#include "data/utf8_repair.h"

#include <cstdint>

namespace switchback {
namespace {

// Length of the well-formed sequence at text[i], or minus the length of the ill-formed one to replace.
// Only the second byte has a range that depends on the first (no overlong forms, no surrogates, nothing above
// U+10FFFF); the following ones are 80..BF.
int sequence(const std::string& text, size_t i) {
  const auto byte = [&](size_t at) { return at < text.size() ? static_cast<uint8_t>(text[at]) : uint8_t{0}; };
  const uint8_t first = byte(i);
  if (first < 0x80) return 1;
  if (first < 0xc2 || first > 0xf4) return -1;
  const int length = first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
  uint8_t low = 0x80, high = 0xbf;
  if (first == 0xe0) low = 0xa0;
  if (first == 0xed) high = 0x9f;
  if (first == 0xf0) low = 0x90;
  if (first == 0xf4) high = 0x8f;
  for (int k = 1; k < length; ++k) {
    if (byte(i + k) < low || byte(i + k) > high) return -k;
    low = 0x80;
    high = 0xbf;
  }
  return length;
}

}  // namespace

bool repair_utf8(std::string& text) {
  size_t i = 0;
  while (i < text.size()) {
    const int length = sequence(text, i);
    if (length < 0) break;
    i += static_cast<size_t>(length);
  }
  if (i == text.size()) return false;
  std::string repaired = text.substr(0, i);
  while (i < text.size()) {
    const int length = sequence(text, i);
    if (length > 0) {
      repaired.append(text, i, static_cast<size_t>(length));
      i += static_cast<size_t>(length);
    } else {
      repaired += "\xef\xbf\xbd";
      i += static_cast<size_t>(-length);
    }
  }
  text = std::move(repaired);
  return true;
}

}  // namespace switchback
