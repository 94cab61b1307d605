// flags.h: Python argparse's conveniences on top of CLI11, for all programs: unambiguous prefixes of long
// flags, and unknown flags answered with the nearest name.
#pragma once

#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace switchback {

// Parses argv. False after --help was printed. Errors are one line.
bool parse_flags(CLI::App& app, int argc, const char* const* argv);

// The words of argv with long flags completed. flags: all long flags, with their dashes.
std::vector<std::string> complete_flags(int argc, const char* const* argv,
                                        const std::vector<std::string>& flags);

}  // namespace switchback
