// flags.h: Python argparse's conveniences on top of CLI11, for all programs: unambiguous prefixes of long
// flags, and unknown flags answered with the nearest name.
#pragma once

#include <string>
#include <vector>

namespace CLI {
class App;
class Validator;
}

namespace switchback {

// Parses argv. False after --help was printed. Errors are one line.
bool parse_flags(CLI::App& app, int argc, const char* const* argv);

// Checks of a flag's number whose message says what is allowed (CLI11's own print the largest double).
const CLI::Validator& positive();      // above 0
const CLI::Validator& not_negative();  // 0 or more

// The words of argv with long flags completed. flags: all long flags, with their dashes.
std::vector<std::string> complete_flags(int argc, const char* const* argv,
                                        const std::vector<std::string>& flags);

}  // namespace switchback
