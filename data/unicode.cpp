// unicode.cpp: UTF-8 both ways, properties by binary search in sorted ranges, composition, lower-casing.
#include "data/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <iterator>
#include <span>

#include "runtime/check.h"

namespace switchback {
namespace {

struct Range {
  char32_t first, last;
};
#include "data/unicode_ranges.inc"

bool contains(std::span<const Range> ranges, char32_t c) {
  auto after = std::upper_bound(ranges.begin(), ranges.end(), c,
                                [](char32_t value, const Range& range) { return value < range.first; });
  return after != ranges.begin() && c <= std::prev(after)->last;
}

int combining_class(char32_t c) {
  return utf8proc_get_property(static_cast<utf8proc_int32_t>(c))->combining_class;
}

// Orders each run of combining marks by their class. libutf8proc's own ordering takes quadratic time on long
// runs.
void order_marks(std::u32string& text) {
  for (auto from = text.begin(); from != text.end(); ++from) {
    if (combining_class(*from) == 0) continue;
    const auto to = std::find_if(from, text.end(), [](char32_t c) { return combining_class(c) == 0; });
    std::stable_sort(from, to,
                     [](char32_t a, char32_t b) { return combining_class(a) < combining_class(b); });
    from = to - 1;
  }
}

std::u32string normalize(std::u32string_view text, int form) {
  const auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE | form);
  std::u32string result;
  result.reserve(text.size() * 2);
  for (char32_t c : text) {
    std::array<utf8proc_int32_t, 32> parts;  // U+FDFA has the most, 18
    int boundary = 0;
    const auto count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c), parts.data(), parts.size(),
                                               options, &boundary);
    CHECK(count >= 0 && static_cast<size_t>(count) <= parts.size(), "cannot decompose code point ",
          static_cast<uint32_t>(c));
    result.append(parts.begin(), parts.begin() + count);
  }
  order_marks(result);
  const auto composed = utf8proc_normalize_utf32(reinterpret_cast<utf8proc_int32_t*>(result.data()),
                                                 static_cast<utf8proc_ssize_t>(result.size()), options);
  CHECK(composed >= 0, "utf8proc_normalize_utf32: ", utf8proc_errmsg(composed));
  result.resize(static_cast<size_t>(composed));
  return result;
}

// A capital sigma is final when a cased letter comes before it and none after it, not counting the
// case-ignorable.
bool is_final_sigma(std::u32string_view text, size_t position) {
  size_t before = position;
  while (before > 0 && contains(kCaseIgnorable, text[before - 1])) --before;
  if (before == 0 || !contains(kCased, text[before - 1])) return false;
  size_t after = position + 1;
  while (after < text.size() && contains(kCaseIgnorable, text[after])) ++after;
  return after == text.size() || !contains(kCased, text[after]);
}

}  // namespace

char32_t next_code_point(std::string_view text, size_t& position, bool* valid) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(position++);
  if (lead < 0x80) return lead;
  // The first continuation byte has a narrower range where the full one would allow overlong forms,
  // surrogates or numbers above U+10FFFF.
  int following = 0;
  uint8_t lowest = 0x80, highest = 0xbf;
  char32_t c = 0;
  if (lead >= 0xc2 && lead <= 0xdf) {
    following = 1;
    c = lead & 0x1f;
  } else if ((lead & 0xf0) == 0xe0) {
    following = 2;
    c = lead & 0x0f;
    if (lead == 0xe0) lowest = 0xa0;
    if (lead == 0xed) highest = 0x9f;
  } else if (lead >= 0xf0 && lead <= 0xf4) {
    following = 3;
    c = lead & 0x07;
    if (lead == 0xf0) lowest = 0x90;
    if (lead == 0xf4) highest = 0x8f;
  }
  bool good = following > 0;
  for (int i = 0; i < following; ++i) {
    if (position == text.size() || byte(position) < lowest || byte(position) > highest) {
      good = false;
      break;
    }
    c = c << 6 | (byte(position++) & 0x3f);
    lowest = 0x80;
    highest = 0xbf;
  }
  if (good) return c;
  if (valid) *valid = false;
  return kReplacementCharacter;
}

std::u32string decode_utf8(std::string_view text) {
  std::u32string result;
  result.reserve(text.size());
  for (size_t position = 0; position < text.size();) result.push_back(next_code_point(text, position));
  return result;
}

void append_utf8(std::string& text, char32_t c) {
  const auto push = [&](char32_t value) { text.push_back(static_cast<char>(value)); };
  if (c < 0x80) {
    push(c);
  } else if (c < 0x800) {
    push(0xc0 | c >> 6);
    push(0x80 | (c & 0x3f));
  } else if (c < 0x10000) {
    push(0xe0 | c >> 12);
    push(0x80 | (c >> 6 & 0x3f));
    push(0x80 | (c & 0x3f));
  } else {
    push(0xf0 | c >> 18);
    push(0x80 | (c >> 12 & 0x3f));
    push(0x80 | (c >> 6 & 0x3f));
    push(0x80 | (c & 0x3f));
  }
}

std::string encode_utf8(std::u32string_view text) {
  std::string result;
  result.reserve(text.size() * 2);
  for (char32_t c : text) append_utf8(result, c);
  return result;
}

bool is_letter(char32_t c) { return contains(kLetters, c); }
bool is_number(char32_t c) { return contains(kNumbers, c); }
bool is_space(char32_t c) { return contains(kSpaces, c); }
bool is_decimal(char32_t c) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(c)) == UTF8PROC_CATEGORY_ND;
}

std::u32string compose(std::u32string_view text) {
  // Nothing below the first combining mark (U+0300) changes in NFC.
  const bool plain = std::all_of(text.begin(), text.end(), [](char32_t c) { return c < 0x300; });
  return plain ? std::u32string(text) : normalize(text, 0);
}

std::u32string compose_compatible(std::u32string_view text) { return normalize(text, UTF8PROC_COMPAT); }

std::u32string lower_case(std::u32string_view text) {
  std::u32string result;
  result.reserve(text.size() + 1);
  for (size_t i = 0; i < text.size(); ++i) {
    const char32_t c = text[i];
    if (c < 0x80) {
      result.push_back(c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c);
    } else if (c == 0x130) {  // capital I with dot above: i and a combining dot
      result += U"i\u0307";
    } else if (c == 0x3a3) {
      result.push_back(is_final_sigma(text, i) ? 0x3c2 : 0x3c3);
    } else {
      result.push_back(static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
    }
  }
  return result;
}

}  // namespace switchback
