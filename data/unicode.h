// unicode.h: the Unicode facts that cleaning and cutting captions needs.
//
// Text under repair is a std::u32string, one element per code point; text at rest is UTF-8. Letters, numbers
// and spaces come from a table made from Python's `regex` package (scripts/make_unicode_ranges.py), because
// open_clip cuts words with it; composition and simple lower-casing come from libutf8proc.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace switchback {

constexpr char32_t kReplacementCharacter = 0xfffd;

// Decodes the code point at `position` and moves past it. Invalid UTF-8 gives U+FFFD once per maximal wrong
// part, as Python's bytes.decode(errors='replace') does; `valid`, if given, is set to false then.
char32_t next_code_point(std::string_view text, size_t& position, bool* valid = nullptr);

std::u32string decode_utf8(std::string_view text);
void append_utf8(std::string& text, char32_t code_point);
std::string encode_utf8(std::u32string_view text);

bool is_letter(char32_t c);   // \p{L}
bool is_number(char32_t c);   // \p{N}
bool is_space(char32_t c);    // Python's str.isspace
bool is_decimal(char32_t c);  // Python's \d

// Canonical (NFC) and compatibility (NFKC) composition.
std::u32string compose(std::u32string_view text);
std::u32string compose_compatible(std::u32string_view text);

// Python's str.lower: one to one except that U+0130 becomes two characters and that a capital sigma at the
// end of a word becomes a final one.
std::u32string lower_case(std::u32string_view text);

}  // namespace switchback
