#include "runtime/program.h"

#include <cstdio>
#include <exception>
#include <new>

namespace switchback {

int run_program(const char* program, int (*run)(int, char**), int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "%s: there is not enough memory for what is asked; are all sizes meant?\n", program);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", program, error.what());
  }
  return 1;
}

}  // namespace switchback
