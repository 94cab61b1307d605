// testing.h: what the tests of ranks share. Include it last: from here on CHECK is doctest's.
#pragma once

#include <cstdio>
#include <functional>
#include <map>
#include <string>

#include "runtime/check.h"

#undef CHECK
#include <doctest/doctest.h>

namespace switchback {

// The message of the Error that f throws; "" when it throws none.
inline std::string error_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

inline bool contains(const std::string& text, const std::string& part) {
  const bool found = text.find(part) != std::string::npos;
  if (!found) std::fprintf(stderr, "not found: \"%s\" in \"%s\"\n", part.c_str(), text.c_str());
  return found;
}

// Variables of a made-up environment.
using Environment = std::map<std::string, std::string>;
inline std::function<const char*(const char*)> variables(const Environment& e) {
  return [&e](const char* name) -> const char* {
    const auto it = e.find(name);
    return it == e.end() ? nullptr : it->second.c_str();
  };
}

}  // namespace switchback
