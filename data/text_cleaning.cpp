// text_cleaning.cpp: the steps of the cleaning, in their order.
#include "data/text_cleaning.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "data/html_entities.h"
#include "data/mojibake.h"
#include "data/unicode.h"

namespace switchback {
namespace {

// Ligatures and digraphs of Latin letters, or nothing for another character.
std::u32string_view ligature_parts(char32_t c) {
  constexpr std::u32string_view kTypographic[] = {U"ff",  U"fi", U"fl", U"ffi",
                                                  U"ffl", U"ſt", U"st"};  // U+FB00 ...
  constexpr std::u32string_view kCroatian[] = {U"DŽ", U"Dž", U"dž", U"LJ", U"Lj", U"lj", U"NJ", U"Nj", U"nj"};
  if (c >= 0xfb00 && c <= 0xfb06) return kTypographic[c - 0xfb00];
  if (c >= 0x1c4 && c <= 0x1cc) return kCroatian[c - 0x1c4];
  switch (c) {
    case 0x132:
      return U"IJ";
    case 0x133:
      return U"ij";
    case 0x149:
      return U"\u02bcn";
    case 0x1f1:
      return U"DZ";
    case 0x1f2:
      return U"Dz";
    case 0x1f3:
      return U"dz";
    default:
      return {};
  }
}

char32_t straight_quote(char32_t c) {
  if (c == 0x2bc || (c >= 0x2018 && c <= 0x201b)) return '\'';
  return c >= 0x201c && c <= 0x201f ? U'"' : c;
}

bool is_line_break(char32_t c) { return c == '\r' || c == 0x2028 || c == 0x2029 || c == 0x85; }

bool is_unwanted_control(char32_t c) {
  return c < 0x09 || c == 0x0b || (c >= 0x0e && c < 0x20) || c == 0x7f || (c >= 0x206a && c <= 0x206f) ||
         c == 0xfeff || (c >= 0xfff9 && c <= 0xfffc);
}

// C1 controls, ligatures, width forms, quotes and line breaks: each character on its own, but for CR LF.
std::u32string replace_characters(std::u32string_view text) {
  std::u32string result;
  result.reserve(text.size());
  const auto push = [&](char32_t c) { result.push_back(is_line_break(c) ? U'\n' : straight_quote(c)); };
  for (size_t i = 0; i < text.size(); ++i) {
    const char32_t c = windows_1252_of_control(text[i]);
    if (c == '\r' && i + 1 < text.size() && text[i + 1] == '\n') continue;
    if (const auto parts = ligature_parts(c); !parts.empty()) {
      std::for_each(parts.begin(), parts.end(), push);
    } else if (c == 0x3000) {  // the ideographic space
      push(U' ');
    } else if (c >= 0xff01 && c <= 0xffef) {
      const std::u32string usual = compose_compatible({&c, 1});
      std::for_each(usual.begin(), usual.end(), push);
    } else {
      push(c);
    }
  }
  return result;
}

// ESC [ digits and semicolons, one letter: the length of such an escape at `i`, or 0.
size_t match_terminal_escape(std::u32string_view text, size_t i) {
  if (text[i] != 0x1b || i + 1 >= text.size() || text[i + 1] != '[') return 0;
  size_t end = i + 2;
  while (end < text.size() && (text[end] == ';' || is_decimal(text[end]))) ++end;
  if (end == text.size()) return 0;
  const bool letter = (text[end] >= 'a' && text[end] <= 'z') || (text[end] >= 'A' && text[end] <= 'Z');
  return letter ? end + 1 - i : 0;
}

std::u32string remove_controls(std::u32string_view text) {
  std::u32string result;
  result.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    if (const size_t length = match_terminal_escape(text, i)) {
      i += length;
    } else {
      if (!is_unwanted_control(text[i])) result.push_back(text[i]);
      ++i;
    }
  }
  return result;
}

// Repeats all repairs until none changes anything: one can uncover what another repairs. (Surrogates need no
// step: decoding UTF-8 never makes one.) Real text takes two or three rounds; only a reference that was
// escaped thousands of times ("&amp;amp;amp;...") reaches the limit, which is there so that such a line does
// not take minutes.
std::u32string repair_line(std::u32string text, bool unescape) {
  constexpr size_t kMostCharacters = size_t{1} << 25;  // over all rounds
  for (size_t seen = 0; seen < kMostCharacters; seen += text.size()) {
    std::u32string repaired = unescape ? unescape_certain_html(text) : text;
    repaired = compose(remove_controls(replace_characters(repair_encoding(repaired))));
    if (repaired == text) break;
    text = std::move(repaired);
  }
  return text;
}

// Python's " ".join(text.split()).
std::u32string collapse_spaces(std::u32string_view text) {
  std::u32string result;
  result.reserve(text.size());
  bool pending = false;
  for (char32_t c : text) {
    if (is_space(c)) {
      pending = !result.empty();
      continue;
    }
    if (pending) result.push_back(U' ');
    pending = false;
    result.push_back(c);
  }
  return result;
}

}  // namespace

std::u32string repair_text(std::u32string_view text) {
  constexpr size_t kLongestLine = 1000000;
  std::u32string result;
  bool unescape = true;
  while (!text.empty()) {
    const size_t line_feed = text.find(U'\n');
    size_t length = line_feed == std::u32string_view::npos ? text.size() : line_feed + 1;
    length = std::min(length, kLongestLine);
    const std::u32string_view line = text.substr(0, length);
    // Once a '<' has been seen, this line and all later ones keep their references.
    if (line.find(U'<') != std::u32string_view::npos) unescape = false;
    result += repair_line(std::u32string(line), unescape);
    text.remove_prefix(length);
  }
  return result;
}

std::string clean_caption(std::string_view text) {
  std::u32string characters = repair_text(decode_utf8(text));
  characters = unescape_html(unescape_html(characters));
  return encode_utf8(lower_case(collapse_spaces(characters)));
}

bool is_plain_ascii(std::string_view text) {
  static constexpr auto kPlain = [] {
    std::array<uint8_t, 256> plain{};
    for (size_t c = 0x20; c < 0x7f; ++c) plain[c] = 1;
    plain['\t'] = plain['\n'] = plain['\f'] = plain['\r'] = 1;
    plain['&'] = 0;
    return plain;
  }();
  uint8_t all = 1;
  for (char c : text) all &= kPlain[static_cast<uint8_t>(c)];
  return all != 0;
}

}  // namespace switchback
