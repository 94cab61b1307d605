// check.h: how switchback reports that something is wrong.
//
// Two kinds of trouble, one exception type:
//   fail("shard ", path, " is truncated ...")   the user's input is bad: one clear line that names the thing,
//                                               the value and the cure. No source position in it.
//   CHECK(a == b, "linear: x has ", a, " ...")  the program broke its own rule: the line also carries
//                                               file:line and the expression.
// Apps catch `Error` in main, print what() as one line and exit with a non-zero status.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace switchback {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Joins its arguments into one string through operator<<.
template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  throw Error(concat(parts...));
}

}  // namespace switchback

#define CHECK(condition, ...)                                                              \
  do {                                                                                     \
    if (!(condition)) [[unlikely]]                                                         \
      ::switchback::fail(::switchback::concat(__VA_ARGS__), " [", __FILE__, ":", __LINE__, \
                         ": " #condition "]");                                             \
  } while (0)
