// utf8_repair.h: text from the web is not always UTF-8; the tokenizer and JSON insist.
#pragma once

#include <string>

namespace switchback {

// Replaces every maximal ill-formed sequence by U+FFFD (Unicode 15, section 3.9, as Python's
// errors="replace"). True when something was replaced. Valid text is left alone without a copy.
bool repair_utf8(std::string& text);

}  // namespace switchback
