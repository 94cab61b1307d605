// word_scanner.cpp: the scanner, with a table for ASCII and Unicode's properties for the rest.
#include "data/word_scanner.h"

#include <array>
#include <cstdint>

#include "data/unicode.h"

namespace switchback {
namespace {

enum class Sort : uint8_t { kSpace, kLetter, kNumber, kOther };

constexpr std::array<Sort, 128> kAsciiSorts = [] {
  std::array<Sort, 128> sorts{};
  for (size_t c = 0; c < 128; ++c) {
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    const bool space = c == ' ' || (c >= '\t' && c <= '\r');
    sorts[c] = letter                 ? Sort::kLetter
               : c >= '0' && c <= '9' ? Sort::kNumber
               : space                ? Sort::kSpace
                                      : Sort::kOther;
  }
  return sorts;
}();

Sort sort_of(char32_t c) {
  if (c < 0x80) return kAsciiSorts[c];
  if (is_letter(c)) return Sort::kLetter;
  if (is_number(c)) return Sort::kNumber;
  // The combining iota below is no letter, but one of its case variants is. Where case is ignored, the
  // reference's pattern then finds it neither among the letters nor among the others, and passes over it.
  if (is_space(c) || c == 0x345) return Sort::kSpace;
  return Sort::kOther;
}

// The length of `literal` at the start of `text` where the long s (U+017F) also counts as s, or 0.
size_t match_folded(std::string_view text, std::string_view literal) {
  constexpr std::string_view kLongS = "\xc5\xbf";
  size_t i = 0;
  for (char wanted : literal) {
    if (i < text.size() && (text[i] | (text[i] >= 'A' && text[i] <= 'Z' ? 0x20 : 0)) == wanted) {
      ++i;
    } else if (wanted == 's' && text.substr(i).starts_with(kLongS)) {
      i += kLongS.size();
    } else {
      return 0;
    }
  }
  return i;
}

size_t match_literal(std::string_view text) {
  constexpr std::string_view kMarks[] = {"<start_of_text>", "<end_of_text>"};
  constexpr std::string_view kEndings[] = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};
  if (text[0] == '<') {
    for (auto mark : kMarks)
      if (size_t length = match_folded(text, mark)) return length;
  } else if (text[0] == '\'') {
    for (auto ending : kEndings)
      if (size_t length = match_folded(text, ending)) return length;
  }
  return 0;
}

}  // namespace

std::string_view WordScanner::next() {
  const size_t size = text_.size();
  const auto sort_at = [&](size_t& at) {  // moves past the character
    const auto byte = static_cast<uint8_t>(text_[at]);
    if (byte < 0x80) {
      ++at;
      return kAsciiSorts[byte];
    }
    return sort_of(next_code_point(text_, at));
  };
  size_t end = position_;
  Sort sort = Sort::kSpace;
  while (end < size) {
    position_ = end;
    sort = sort_at(end);
    if (sort != Sort::kSpace) break;
  }
  if (sort == Sort::kSpace) {
    position_ = size;
    return {};
  }
  const size_t begin = position_;
  if (sort == Sort::kOther) {
    if (const size_t length = match_literal(text_.substr(begin))) {
      position_ = begin + length;
      return text_.substr(begin, length);
    }
  }
  if (sort != Sort::kNumber) {
    for (size_t after = end; after < size && sort_at(after) == sort;) end = after;
  }
  position_ = end;
  return text_.substr(begin, end - begin);
}

}  // namespace switchback
