// html_entities.h: character references such as &amp; &#39; &#x1F600; become the characters they stand for.
#pragma once

#include <string>
#include <string_view>

namespace switchback {

// Python's html.unescape, the rule of HTML 5: names may lack their semicolon where the standard allows it,
// the longest known prefix of a name counts, wrong numbers become U+FFFD or nothing.
std::u32string unescape_html(std::u32string_view text);

// The careful form for text that may not be HTML at all: only whole references that end in a semicolon, and
// also names in capitals (&EACUTE;).
std::u32string unescape_certain_html(std::u32string_view text);

}  // namespace switchback
