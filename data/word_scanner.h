// word_scanner.h: cuts cleaned text into the words that are encoded one by one.
//
//   <start_of_text> | <end_of_text> | 's | 't | 're | 've | 'm | 'll | 'd | letters | number | others
//
// in this order, ignoring case; letters and others come in runs, a number is one character. So a run of other
// characters swallows an apostrophe that it reaches, but not one that it starts with. Spaces separate. Text
// is UTF-8, already in lower case; invalid UTF-8 counts as other characters.
#pragma once

#include <cstddef>
#include <string_view>

namespace switchback {

class WordScanner {
 public:
  explicit WordScanner(std::string_view text) : text_(text) {}

  // The next word, empty at the end. It points into the text.
  std::string_view next();

 private:
  std::string_view text_;
  size_t position_ = 0;
};

}  // namespace switchback
