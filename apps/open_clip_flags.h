// open_clip_flags.h: flags of open_clip's trainer that need nothing here, and those that cannot be had.
//
// A command line written for open_clip must run unchanged. What makes no difference to the result is accepted
// and said once ("--dist-url has no effect: ..."); what would silently train something else is refused with
// the way out.
#pragma once

#include <span>
#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace switchback {

struct OpenClipFlag {
  enum Kind { ignored, refused };
  const char* name;
  int values;  // 0: a switch, 1: one value, -1: any number
  Kind kind;
  const char* why;
};
std::span<const OpenClipFlag> open_clip_flags();

// Adds them to the parser, outside the help.
void add_open_clip_flags(CLI::App& app);
// After parsing: a notice for each ignored flag that was given, an error for the first refused one.
void answer_open_clip_flags(const CLI::App& app, std::vector<std::string>& notices);

// open_clip's --precision, and what is done here: the name of ours. Errors: fp16.
std::string precision_of_open_clip(const std::string& name, std::vector<std::string>& notices);

// open_clip's --use-bnb-linear, a class of bitsandbytes, as the name of our recipe (--linear). Errors:
// another class.
std::string recipe_of_bitsandbytes(const std::string& name);

}  // namespace switchback
