// mojibake.h: repairs text whose UTF-8 bytes were once read in a single-byte encoding: "cafÃ©" becomes
// "café".
//
// open_clip cleans captions with the ftfy package, so these decisions are ftfy's (version 6.3), restated:
// which neighbourhoods of characters no real text has, which encodings are tried in which order, and what is
// repaired in part.
#pragma once

#include <string>
#include <string_view>

namespace switchback {

// True if some neighbouring characters are very likely the traces of a wrong decoding.
bool looks_wrongly_decoded(std::u32string_view text);

// Undoes wrong decodings until the text looks right or nothing more can be undone.
std::u32string repair_encoding(std::u32string_view text);

// U+0080 to U+009f read as Windows-1252; other characters stay.
char32_t windows_1252_of_control(char32_t c);

}  // namespace switchback
