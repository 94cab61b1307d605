// html_entities.cpp: character references, by name (binary search in a sorted table) and by number.
#include "data/html_entities.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <optional>
#include <span>

#include "data/unicode.h"

namespace switchback {
namespace {

struct Entity {
  std::string_view name;  // without '&'; with ';' where the reference has it
  const char* text;       // UTF-8
};
#include "data/html_entities.inc"

constexpr size_t kLongestName = 32;  // characters of a name before its semicolon

const Entity* find(std::span<const Entity> entities, std::string_view name) {
  auto place =
      std::lower_bound(entities.begin(), entities.end(), name,
                       [](const Entity& entity, std::string_view wanted) { return entity.name < wanted; });
  return place != entities.end() && place->name == name ? &*place : nullptr;
}

// What &#number; stands for, by the standard's table: 0 and the surrogates are replaced, 0x80 to 0x9f are
// read as Windows-1252, and control characters and non-characters vanish.
std::u32string character_of(uint32_t number) {
  constexpr char16_t kWindows1252[32] = {0x20ac, 0x81,   0x201a, 0x192,  0x201e, 0x2026, 0x2020, 0x2021,
                                         0x2c6,  0x2030, 0x160,  0x2039, 0x152,  0x8d,   0x17d,  0x8f,
                                         0x90,   0x2018, 0x2019, 0x201c, 0x201d, 0x2022, 0x2013, 0x2014,
                                         0x2dc,  0x2122, 0x161,  0x203a, 0x153,  0x9d,   0x17e,  0x178};
  if (number == 0) return {kReplacementCharacter};
  if (number == '\r') return U"\r";
  if (number >= 0x80 && number <= 0x9f) return {kWindows1252[number - 0x80]};
  if ((number >= 0xd800 && number <= 0xdfff) || number > 0x10ffff) return {kReplacementCharacter};
  const bool control = number <= 0x8 || number == 0xb || (number >= 0xe && number <= 0x1f) || number == 0x7f;
  const bool not_a_character = (number >= 0xfdd0 && number <= 0xfdef) || (number & 0xfffe) == 0xfffe;
  if (control || not_a_character) return {};
  return {static_cast<char32_t>(number)};
}

int digit_value(char32_t c, bool hexadecimal) {
  if (c >= '0' && c <= '9') return static_cast<int>(c - '0');
  if (!hexadecimal) return -1;
  if (c >= 'a' && c <= 'f') return static_cast<int>(c - 'a') + 10;
  if (c >= 'A' && c <= 'F') return static_cast<int>(c - 'A') + 10;
  return -1;
}

// Reads "#65;" or "#x41" at `position`, the place after '&'. Moves `position` past it, the semicolon
// included.
std::optional<std::u32string> read_number(std::u32string_view text, size_t& position) {
  size_t at = position + 1;
  const bool hexadecimal = at < text.size() && (text[at] == 'x' || text[at] == 'X');
  if (hexadecimal) ++at;
  const size_t digits = at;
  uint32_t number = 0;
  for (int value; at < text.size() && (value = digit_value(text[at], hexadecimal)) >= 0; ++at)
    number = std::min<uint32_t>(number * (hexadecimal ? 16 : 10) + static_cast<uint32_t>(value), 0x110000);
  if (at == digits) return std::nullopt;
  if (at < text.size() && text[at] == ';') ++at;
  position = at;
  return character_of(number);
}

bool ends_name(char32_t c) {
  return c == '\t' || c == '\n' || c == '\f' || c == ' ' || c == '<' || c == '&' || c == '#' || c == ';';
}

// Reads "amp;", "amp" or "ampersand" (as & + "ersand") at `position`, the place after '&'.
std::optional<std::u32string> read_name(std::u32string_view text, size_t& position) {
  std::string name;  // as far as it is ASCII: no entity is longer
  size_t at = position;
  while (at < text.size() && at - position < kLongestName && !ends_name(text[at])) {
    if (text[at] < 0x80 && name.size() == at - position) name.push_back(static_cast<char>(text[at]));
    ++at;
  }
  if (at == position) return std::nullopt;
  if (name.size() == at - position && at < text.size() && text[at] == ';') name.push_back(';');
  for (size_t length = name.size(); length > 1; --length) {
    if (const Entity* entity = find(kHtmlEntities, std::string_view(name).substr(0, length))) {
      position += length;
      return decode_utf8(entity->text);
    }
  }
  return std::nullopt;
}

}  // namespace

std::u32string unescape_html(std::u32string_view text) {
  std::u32string result;
  result.reserve(text.size());
  for (size_t position = 0; position < text.size();) {
    const char32_t c = text[position++];
    if (c != '&' || position == text.size()) {
      result.push_back(c);
      continue;
    }
    const auto replacement = text[position] == '#' ? read_number(text, position) : read_name(text, position);
    if (replacement) {
      result += *replacement;
    } else {
      result.push_back(c);
    }
  }
  return result;
}

std::u32string unescape_certain_html(std::u32string_view text) {
  constexpr size_t kLongest = 24;
  const auto is_alphanumeric = [](char32_t c) {
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
  };
  std::u32string result;
  result.reserve(text.size());
  for (size_t position = 0; position < text.size();) {
    const char32_t c = text[position++];
    result.push_back(c);
    if (c != '&' || position == text.size()) continue;
    const bool numeric = text[position] == '#';
    const size_t from = position + numeric;
    size_t to = from;
    while (to < text.size() && to - from < kLongest && is_alphanumeric(text[to])) ++to;
    if (to == from || to == text.size() || text[to] != ';') continue;
    if (numeric) {
      size_t after = position;
      const auto replacement = read_number(text, after);
      // "&#59;" stays: its semicolon could be taken for one that was not consumed.
      if (!replacement || after != to + 1 || *replacement == U";") continue;
      result.pop_back();
      result += *replacement;
    } else {
      const std::string name = encode_utf8(text.substr(from, to + 1 - from));
      const Entity* entity = find(kHtmlEntities, name);
      if (!entity) entity = find(kUppercaseEntities, name);
      if (!entity) continue;
      result.pop_back();
      result += decode_utf8(entity->text);
    }
    position = to + 1;
  }
  return result;
}

}  // namespace switchback
