// mojibake_signs.cpp: does this text show the signs of a wrong decoding? Neighbouring characters of certain
// kinds, such as an accented letter before a currency sign, stand together in no real text.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "data/mojibake.h"
#include "data/mojibake_kinds.h"
#include "data/unicode.h"

namespace switchback {
namespace {

using namespace mojibake;

bool one_of(std::u32string_view members, char32_t c) { return members.find(c) != std::u32string_view::npos; }
bool is_lower_ascii(char32_t c) { return c >= 'a' && c <= 'z'; }
bool is_upper_ascii(char32_t c) { return c >= 'A' && c <= 'Z'; }
bool is_ascii_letter(char32_t c) { return is_lower_ascii(c) || is_upper_ascii(c); }

constexpr uint32_t kAccented = kLowerAccented | kUpperAccented;
constexpr uint32_t kPunctuation = kStartPunctuation | kEndPunctuation;

// Two neighbours that no text has: the first character's kinds, then the second's.
struct Neighbours {
  uint32_t first, second;
};
constexpr Neighbours kUnlikely[] = {
    {kBad | kAccented | kBox | kPunctuation | kCurrency | kNumeric | kLaw, kBad},
    {kBad, kAccented | kBox | kPunctuation | kCurrency | kNumeric | kLaw},
    {kLowerAccented | kLowerCommon | kBox | kEndPunctuation | kCurrency | kNumeric, kUpperAccented},
    {kBox | kEndPunctuation | kCurrency | kNumeric, kLowerAccented},
    {kLowerAccented | kBox | kEndPunctuation, kCurrency},
    {kUpperAccented | kBox, kNumeric | kLaw},
    {kCurrency | kNumeric | kBox, kStartPunctuation},
    {kBox, kKaomoji},
    {kAccented | kCurrency | kNumeric | kPunctuation | kLaw, kBox},
    {kBox, kEndPunctuation},
};

// Two neighbours that are themselves the sign: the first, then any of the second.
struct Pair {
  std::u32string_view first, second;
};
constexpr Pair kTellingPairs[] = {
    // Windows-1252
    {U"ÂÃÎÐ", U"€œŠš¢£Ÿž\u00a0\u00ad®©°·»–—´"},
    {U"×", U"²³"},
    {U"à", U"²µ¹¼½¾"},
    {U"Ã", U"\u00a0¡"},
    // MacRoman
    {U"√", U"±∂†≠®™´≤≥¥µø"},
    {U"≈", U"°¢"},
    // Windows-1251 and Windows-1257 readings of U+2000 to U+203f
    {U"в", U"Ђ"},
    {U"ā", U"€"},
};

class Neighbourhood {
 public:
  explicit Neighbourhood(std::u32string_view text) : text_(text), kinds_(text.size()) {
    std::transform(text.begin(), text.end(), kinds_.begin(), kinds_of);
  }

  bool is_wrong_at(size_t i) const {
    return has(i, kC1) || is_wrong_pair(i) || is_wrong_triple(i) || is_wrong_word(i) || is_wrong_capital_a(i);
  }

 private:
  char32_t at(size_t i) const { return i < text_.size() ? text_[i] : U'\0'; }
  bool has(size_t i, uint32_t kinds) const { return i < kinds_.size() && (kinds_[i] & kinds) != 0; }
  bool in(size_t i, std::u32string_view members) const {
    return i < text_.size() && one_of(members, text_[i]);
  }

  bool is_wrong_pair(size_t i) const {
    if (i + 1 >= text_.size()) return false;
    for (const Neighbours& pair : kUnlikely)
      if (has(i, pair.first) && has(i + 1, pair.second)) return true;
    for (const Pair& pair : kTellingPairs)
      if (in(i, pair.first) && in(i + 1, pair.second)) return true;
    // The ligature oe stands before an unaccented letter; a degree sign does not follow a capital.
    if (in(i, U"Œœ") && !is_ascii_letter(at(i + 1))) return true;
    if (has(i, kUpperAccented) && at(i + 1) == U'°') return true;
    return in(i, U"ÂÃÎÐ") && has(i + 1, kPunctuation);
  }

  bool is_wrong_triple(size_t i) const {
    if (i + 2 >= text_.size()) return false;
    const auto kinds = [&](uint32_t first, uint32_t second, uint32_t third) {
      return has(i, first) && has(i + 1, second) && has(i + 2, third);
    };
    const bool word_follows = is_letter(at(i + 2)) || is_number(at(i + 2)) || at(i + 2) == U'_';
    return (is_ascii_letter(at(i)) && has(i + 1, kLowerCommon | kUpperCommon) && has(i + 2, kBad)) ||
           (is_space(at(i)) && has(i + 1, kUpperAccented) && has(i + 2, kCurrency)) ||
           kinds(kAccented | kBox | kCurrency | kEndPunctuation, kStartPunctuation, kNumeric) ||
           kinds(kAccented | kCurrency | kNumeric | kBox | kLaw, kEndPunctuation, kStartPunctuation) ||
           (is_lower_ascii(at(i)) && has(i + 1, kUpperAccented) &&
            has(i + 2, kStartPunctuation | kCurrency)) ||
           (has(i, kAccented) && has(i + 1, kPunctuation) && word_follows);
  }

  // Signs of three to five characters, by encoding.
  bool is_wrong_word(size_t i) const {
    const auto arabic = [&](size_t k) {  // Windows-1252 reading of one Arabic letter
      return in(k, U"ØÙ") &&
             (has(k + 1, kCommon | kCurrency | kBad | kNumeric | kStartPunctuation) || in(k + 1, U"ŸŠ®°µ»"));
    };
    const auto between = [&](std::u32string_view letters, std::u32string_view others) {
      return in(i, letters) && in(i + 2, letters) &&
             (has(i + 1, kC1 | kBad | kPunctuation | kCurrency) || in(i + 1, others));
    };
    if (arabic(i) && arabic(i + 2)) return true;
    if (at(i) == U'‚' && at(i + 1) == U'Ä' && in(i + 2, U"ìîïòôúùû†°¢π")) return true;      // MacRoman
    if (at(i) == U'‚' && in(i + 1, U"âó") && in(i + 2, U"àä°ê")) return true;               // MacRoman
    if (between(U"ВГРС", U"°µ") || between(U"ΒΓΞΟ", U"°")) return true;                     // 1251, 1253
    if (at(i) == U'β' && at(i + 1) == U'€' && in(i + 2, U"™\u00a0Ά\u00ad®°")) return true;  // Windows-1253
    return text_.substr(i, 5) == U"ГўВЂВ" && i + 6 < text_.size() && at(i + 5) != U'\n' &&
           (is_ascii_letter(at(i + 6)) || at(i + 6) == U' ');  // Windows-1251 on Windows-1252
  }

  // A capital A with circumflex or tilde, the lead byte of most European letters, before a plain space or a
  // character that it encodes itself.
  bool is_wrong_capital_a(size_t i) const {
    if (i == 0 && in(0, U"ÂÃ") && at(1) == U' ') return true;
    if (is_lower_ascii(at(i))) {
      const size_t letter = i + 1 < text_.size() && is_space(at(i + 1)) ? i + 2 : i + 1;
      if (in(letter, U"ÃÂ") && at(letter + 1) == U' ') return true;
    }
    const bool before = is_lower_ascii(at(i)) || in(i, U".,?!") || has(i, kEndPunctuation);
    return before && at(i + 1) == U'Â' && (at(i + 2) == U' ' || has(i + 2, kPunctuation));
  }

  std::u32string_view text_;
  std::vector<uint32_t> kinds_;
};

}  // namespace

bool looks_wrongly_decoded(std::u32string_view text) {
  if (std::all_of(text.begin(), text.end(), [](char32_t c) { return c < 0x80; })) return false;
  const Neighbourhood neighbourhood(text);
  for (size_t i = 0; i < text.size(); ++i)
    if (neighbourhood.is_wrong_at(i)) return true;
  return false;
}

}  // namespace switchback
