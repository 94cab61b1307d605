// text_cleaning.h: what happens to a caption before it is cut into words; open_clip's `lower` cleaning.
//
//   repair_text (ftfy's fix_text) -> unescape HTML twice -> strip -> one space for every run -> lower-case
#pragma once

#include <string>
#include <string_view>

namespace switchback {

// Repairs typical damage, line by line: certain HTML references (until a '<' shows that the text is real
// HTML), wrong decodings, C1 controls, Latin ligatures, full and half width forms, curly quotes, line breaks,
// terminal escapes, control characters; the result is composed (NFC).
std::u32string repair_text(std::u32string_view text);

// The whole cleaning; UTF-8 in and out.
std::string clean_caption(std::string_view text);

// True for text that the cleaning changes only in its spaces and its capitals: printable ASCII, tabs and line
// ends, and no '&'. Most English captions are so.
bool is_plain_ascii(std::string_view text);

}  // namespace switchback
