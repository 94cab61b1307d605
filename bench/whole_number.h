// whole_number.h: a positive whole number that the user typed, or one line that says what was typed instead.
#pragma once

#include <charconv>
#include <cstdint>
#include <string>

#include "runtime/check.h"

namespace switchback {

inline int64_t whole_number(const std::string& what, const std::string& text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 1)
    fail(what, " is '", text, "': expected a whole number above 0");
  return value;
}

}  // namespace switchback
