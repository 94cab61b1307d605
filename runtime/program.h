// program.h: what the mains have in common: an error that nobody caught is one line, and the exit status 1.
#pragma once

namespace switchback {

// run's exit status, or 1 after "program: what went wrong" on the standard error.
int run_program(const char* program, int (*run)(int, char**), int argc, char** argv);

}  // namespace switchback
