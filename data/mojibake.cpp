// mojibake.cpp: repair by encoding the text back to bytes and decoding these as UTF-8, whole or in parts.
#include "data/mojibake.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <optional>
#include <utility>

#include "data/mojibake_kinds.h"
#include "data/unicode.h"

namespace switchback {
namespace {

using namespace mojibake;

// ---- Encoding back -----------------------------------------------------------------------------

constexpr size_t kLatin1 = std::size(kEncodings);  // tried first; the others are in kEncodings' order
constexpr size_t kSloppyCount = 6;                 // Windows code pages, which also know U+FFFD
constexpr size_t kMacRoman = 7;
constexpr char kUnknownByte = 0x1a;  // what U+FFFD becomes: a byte that is not known any more

std::optional<std::string> encode_as(std::u32string_view text, size_t encoding) {
  std::string bytes;
  bytes.reserve(text.size());
  const bool sloppy = encoding < kSloppyCount;
  for (char32_t c : text) {
    if (sloppy && (c == kReplacementCharacter || c == kUnknownByte)) {
      if (c == kUnknownByte) return std::nullopt;
      bytes.push_back(kUnknownByte);
    } else if (c < 0x80) {
      bytes.push_back(static_cast<char>(c));
    } else if (encoding == kLatin1) {
      if (c > 0xff) return std::nullopt;
      bytes.push_back(static_cast<char>(c));
    } else {
      const auto& table = kEncodings[encoding];
      const auto* place = std::find(std::begin(table), std::end(table), c);
      if (place == std::end(table)) return std::nullopt;
      bytes.push_back(static_cast<char>(0x80 + (place - std::begin(table))));
    }
  }
  return bytes;
}

// One byte of a pattern: a range and up to two single bytes.
struct ByteSet {
  uint8_t first, last;
  uint8_t others[2] = {0, 0};
  bool matches(char byte) const {
    const auto value = static_cast<uint8_t>(byte);
    return (value >= first && value <= last) || (value != 0 && (value == others[0] || value == others[1]));
  }
};

// The length of the match of `sets` at `i`, or 0.
template <size_t count>
size_t match(std::string_view bytes, size_t i, const std::array<ByteSet, count>& sets) {
  if (i + count > bytes.size()) return 0;
  for (size_t k = 0; k < count; ++k)
    if (!sets[k].matches(bytes[i + k])) return 0;
  return count;
}

constexpr ByteSet kSpace{' ', ' '}, kContinuation{0x80, 0xbf};
// A continuation byte that is neither 0xa0 (the lost one) nor 0x85: {0x80-0x84, 0x86-0x9f, 0xa1-0xbf}
bool is_other_continuation(char byte) {
  return kContinuation.matches(byte) && byte != '\x85' && byte != '\xa0';
}

// UTF-8 in which a byte 0xa0, seen as a space that does not break, has become a plain space.
size_t match_lost_a0(std::string_view bytes, size_t i) {
  const auto byte = [&](size_t k) { return i + k < bytes.size() ? bytes[i + k] : '\0'; };
  const auto lead = static_cast<uint8_t>(byte(0));
  if (std::string_view("\xc2\xc3\xc5\xce\xd0\xd9").find(byte(0)) != std::string_view::npos && byte(1) == ' ')
    return 2;
  if ((lead == 0xe2 || lead == 0xe3) && byte(1) == ' ' && is_other_continuation(byte(2))) return 3;
  if (lead >= 0xe0 && lead <= 0xe3 && is_other_continuation(byte(1)) && byte(2) == ' ') return 3;
  if (lead != 0xf0) return 0;
  constexpr ByteSet kLead{0xf0, 0xf0};
  if (size_t n = match<4>(bytes, i, {kLead, kSpace, kContinuation, kContinuation})) return n;
  if (size_t n = match<4>(bytes, i, {kLead, kContinuation, kSpace, kContinuation})) return n;
  return match<4>(bytes, i, {kLead, kContinuation, kContinuation, kSpace});
}

std::string restore_lost_a0(std::string_view bytes) {
  // "Ã " is most often the word "à" whose own space was swallowed: keep one, except in the Portuguese
  // contractions.
  constexpr std::string_view kOneWord[] = {" ", "quele", "quela", "quilo", "s "};
  std::string words;
  for (size_t i = 0; i < bytes.size(); ++i) {
    words.push_back(bytes[i]);
    if (!bytes.substr(i).starts_with("\xc3 ")) continue;
    const std::string_view rest = bytes.substr(i + 2);
    if (std::any_of(std::begin(kOneWord), std::end(kOneWord),
                    [&](auto word) { return rest.starts_with(word); }))
      continue;
    words += "\xa0 ";
    ++i;
  }
  for (size_t i = 0; i < words.size();) {
    const size_t length = match_lost_a0(words, i);
    std::replace(words.begin() + static_cast<std::ptrdiff_t>(i),
                 words.begin() + static_cast<std::ptrdiff_t>(i + length), ' ', '\xa0');
    i += std::max<size_t>(length, 1);
  }
  return words;
}

// UTF-8 sequences in which a continuation byte is unknown (0x1a) or, at most once, a question mark.
size_t match_lossy(std::string_view bytes, size_t i) {
  constexpr ByteSet kUnknown{0x1a, 0x1a}, kUnknownOrQuestion{0x1a, 0x1a, {'?'}};
  constexpr ByteSet kKnownOrNot{0x80, 0xbf, {0x1a}}, kAny{0x80, 0xbf, {0x1a, '?'}};
  constexpr ByteSet kSurrogate{0xed, 0xed}, kHigh{0xa0, 0xaf}, kLow{0xb0, 0xbf};
  constexpr ByteSet kThree{0xe0, 0xef}, kFour{0xf0, 0xf4};
  if (size_t n = match<2>(bytes, i, {ByteSet{0xc2, 0xdf}, kUnknown})) return n;
  if (size_t n = match<2>(bytes, i, {ByteSet{0xc2, 0xc3}, ByteSet{'?', '?'}})) return n;
  if (size_t n = match<6>(bytes, i, {kSurrogate, kHigh, kUnknownOrQuestion, kSurrogate, kLow, kAny}))
    return n;
  if (size_t n = match<6>(bytes, i, {kSurrogate, kHigh, kAny, kSurrogate, kLow, kUnknownOrQuestion}))
    return n;
  if (size_t n = match<3>(bytes, i, {kThree, kUnknownOrQuestion, kKnownOrNot})) return n;
  if (size_t n = match<3>(bytes, i, {kThree, kKnownOrNot, kUnknownOrQuestion})) return n;
  if (size_t n = match<4>(bytes, i, {kFour, kUnknownOrQuestion, kKnownOrNot, kKnownOrNot})) return n;
  if (size_t n = match<4>(bytes, i, {kFour, kKnownOrNot, kUnknownOrQuestion, kKnownOrNot})) return n;
  if (size_t n = match<4>(bytes, i, {kFour, kKnownOrNot, kKnownOrNot, kUnknownOrQuestion})) return n;
  return bytes[i] == kUnknownByte ? 1 : 0;
}

std::string replace_lossy(std::string_view bytes) {
  std::string result;
  for (size_t i = 0; i < bytes.size();) {
    if (const size_t length = match_lossy(bytes, i)) {
      append_utf8(result, kReplacementCharacter);
      i += length;
    } else {
      result.push_back(bytes[i++]);
    }
  }
  return result;
}

// Strict UTF-8, and two variants of it: six-byte surrogate pairs (CESU-8) and Java's two-byte U+0000. A line
// feed that ends the text counts as the last byte of a variant: ftfy's pattern ends in `$`, which matches
// before it.
std::optional<std::u32string> decode_variants(std::string_view bytes) {
  std::u32string result;
  const auto byte = [&](size_t k) { return static_cast<uint8_t>(bytes[k]); };
  for (size_t i = 0; i < bytes.size();) {
    const auto last_of_variant = [&](size_t k) {
      return kContinuation.matches(bytes[k]) || (bytes[k] == '\n' && k + 1 == bytes.size());
    };
    if (byte(i) == 0xc0 && i + 1 < bytes.size() &&
        (byte(i + 1) == 0x80 || (bytes[i + 1] == '\n' && i + 2 == bytes.size()))) {
      result.push_back(U'\0');
      i += 2;
      continue;
    }
    if (match<5>(bytes, i,
                 {ByteSet{0xed, 0xed}, ByteSet{0xa0, 0xaf}, kContinuation, ByteSet{0xed, 0xed},
                  ByteSet{0xb0, 0xbf}}) &&
        i + 5 < bytes.size() && last_of_variant(i + 5)) {
      result.push_back((byte(i + 1) & 0x0fu) << 16 | (byte(i + 2) & 0x3fu) << 10);
      result.back() += ((byte(i + 4) & 0x0fu) << 6) + (byte(i + 5) & 0x3fu) + 0x10000u;
      i += 6;
      continue;
    }
    bool valid = true;
    result.push_back(next_code_point(bytes, i, &valid));
    if (!valid) return std::nullopt;
  }
  return result;
}

// ---- Repair -----------------------------------------------------------------------------------

std::optional<std::u32string> decode_as_utf8(std::u32string_view text, size_t encoding) {
  auto bytes = encode_as(text, encoding);
  if (!bytes) return std::nullopt;
  if (encoding != kMacRoman)
    bytes = restore_lost_a0(*bytes);  // in MacRoman it would match an en dash and a space
  if (encoding < kSloppyCount) bytes = replace_lossy(*bytes);
  return decode_variants(*bytes);
}

// The length of the run of wrongly decoded UTF-8 sequences at `i`, or 0.
size_t match_embedded(std::u32string_view text, size_t i) {
  if (i > 0 && (kinds_of(text[i - 1]) & kUtf8ContinuationStrict)) return 0;
  const auto has = [&](size_t k, uint32_t kind) { return k < text.size() && (kinds_of(text[k]) & kind); };
  const auto sequence = [&](size_t k, uint32_t lead, size_t following) {
    if (!has(k, lead)) return false;
    for (size_t n = 1; n <= following; ++n)
      if (!has(k + n, kUtf8Continuation)) return false;
    return true;
  };
  size_t k = i;
  for (;;) {
    if (sequence(k, kUtf8FirstOf2, 1)) {
      k += 2;
    } else if (sequence(k, kUtf8FirstOf3, 2)) {
      k += 3;
    } else if (sequence(k, kUtf8FirstOf4, 3)) {
      k += 4;
    } else {
      return k - i;
    }
  }
}

std::u32string repair_embedded(std::u32string_view text) {
  std::u32string result;
  for (size_t i = 0; i < text.size();) {
    const size_t length = match_embedded(text, i);
    const std::u32string_view part = text.substr(i, std::max<size_t>(length, 1));
    const bool repair = length > 0 && length < text.size() && looks_wrongly_decoded(part);
    result += repair ? repair_encoding(part) : std::u32string(part);
    i += part.size();
  }
  return result;
}

// One decoding undone, or the text as it is.
std::u32string repair_once(std::u32string_view text) {
  if (!looks_wrongly_decoded(text)) return std::u32string(text);
  if (auto decoded = decode_as_utf8(text, kLatin1)) return *decoded;
  for (size_t encoding = 0; encoding < std::size(kEncodings); ++encoding)
    if (auto decoded = decode_as_utf8(text, encoding)) return *decoded;
  std::u32string repaired = repair_embedded(text);
  if (repaired != text) return repaired;
  // No UTF-8 in it: then its C1 controls are Windows-1252 read as Latin-1.
  std::transform(text.begin(), text.end(), repaired.begin(), windows_1252_of_control);
  return repaired;
}

}  // namespace

std::u32string repair_encoding(std::u32string_view text) {
  std::u32string current(text);
  for (;;) {
    std::u32string repaired = repair_once(current);
    if (repaired == current) return repaired;
    current = std::move(repaired);
  }
}

char32_t windows_1252_of_control(char32_t c) {
  return c >= 0x80 && c <= 0x9f ? static_cast<char32_t>(kEncodings[0][c - 0x80]) : c;
}

}  // namespace switchback
