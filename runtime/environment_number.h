// environment_number.h: a whole number from an environment variable, or one line that says what stood there.
#pragma once

#include <charconv>
#include <cstdlib>
#include <cstring>
#include <optional>

#include "runtime/check.h"

namespace switchback {

// Nothing where the variable is unset.
inline std::optional<int> environment_number(const char* name, int least, int most, const char* hint = "") {
  const char* text = std::getenv(name);
  if (!text) return std::nullopt;
  int value = 0;
  const char* end = text + std::strlen(text);
  const auto [stop, error] = std::from_chars(text, end, value);
  if (error != std::errc() || stop != end || value < least || value > most)
    fail(name, " is '", text, "': it must be a whole number from ", least, " to ", most, hint);
  return value;
}

}  // namespace switchback
