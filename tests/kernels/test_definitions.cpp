// Every op in f64, f32 and bf16 against its definition: plain loops in f64 (cases_*.h).
// SWITCHBACK_SHOW_ERRORS=1 prints the largest error of each op and type.
#include <cstdio>
#include <cstdlib>

#include "tests/kernels/testing.h"

using namespace switchback;

namespace {

void compare(DType dtype, double OpCase::*tolerance) {
  std::map<std::string, double> largest;
  for (const OpCase& op : op_cases()) {
    const Arrays results = run(op, {dtype}), expected = definition(op);
    for (const auto& [name, values] : expected) {
      const double error = error_of(results.at(name), values);
      double& shown = largest[op.name.substr(0, op.name.find(' '))];
      shown = std::max(shown, error);
      INFO(op.name, " ", std::string(name_of(dtype)), " ", name, ": error ", error);
      CHECK(error <= op.*tolerance);
    }
  }
  if (!std::getenv("SWITCHBACK_SHOW_ERRORS")) return;
  for (const auto& [name, error] : largest)
    std::printf("%-24s %-5s largest error %.2e\n", name.c_str(), name_of(dtype), error);
}

}  // namespace

TEST_CASE("every op in f64 is its definition") { compare(DType::f64, &OpCase::tolerance_f64); }
TEST_CASE("every op in f32 is its definition") { compare(DType::f32, &OpCase::tolerance_f32); }
TEST_CASE("every op in bf16 is its definition") { compare(DType::bf16, &OpCase::tolerance_bf16); }
