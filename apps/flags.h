// flags.h: what the programs' command lines have in common: Python argparse's conveniences on top of CLI11
// (unambiguous prefixes of long flags, and unknown flags answered with the nearest name), and one line for
// every error.
#pragma once

#include <string>
#include <vector>

namespace CLI {
class App;
class Validator;
}

namespace switchback {

// A program's main: run's exit status, or 1 after "program: what went wrong" on the standard error.
int run_program(const char* program, int (*run)(int, char**), int argc, char** argv);

// Parses argv. False after --help was printed. Errors are one line.
bool parse_flags(CLI::App& app, int argc, const char* const* argv);

// Checks of a flag's number whose message says what is allowed (CLI11's own print the largest double).
const CLI::Validator& positive();      // above 0
const CLI::Validator& not_negative();  // 0 or more

// The words of argv with long flags completed. flags: all long flags, with their dashes.
std::vector<std::string> complete_flags(int argc, const char* const* argv,
                                        const std::vector<std::string>& flags);

}  // namespace switchback
