// bench_memory.cpp: what the linears of a transformer block keep for their backward pass, by recipe, as the
// allocator counts it (on a CPU; there is nothing to time).
//
//   build/bench/bench_memory [WIDTH [TOKENS]]      256, 1024
//
// Columns: qkv, out, fc, proj each by itself, and their sum, as bytes a token over the width: a value of 16
// bits for each channel is 2.00. Then a whole block, which keeps more than its linears' inputs. Attention
// keeps its result, out's input, for its own backward pass, so within a block what out keeps in another form
// comes on top.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "bench/kept_memory.h"
#include "runtime/check.h"
#include "runtime/program.h"

using namespace switchback;

namespace {

int run(int count, char** arguments) {
  const int64_t width = count > 1 ? std::atoll(arguments[1]) : 256,
                tokens = count > 2 ? std::atoll(arguments[2]) : 1024;
  if (width < 64 || width % 64 != 0 || tokens < 1)
    fail("usage: bench_memory [WIDTH [TOKENS]]; the width is a multiple of 64");
  const auto units = [&](size_t bytes) {
    return static_cast<double>(bytes) / static_cast<double>(tokens * width);
  };
  std::printf("Kept for the backward pass: bytes a token and channel, width %lld, %lld tokens\n\n",
              static_cast<long long>(width), static_cast<long long>(tokens));
  std::printf(
      "| recipe | qkv | out | fc | proj | the four linears | of standard | a block | of standard |\n");
  std::printf("|---|---|---|---|---|---|---|---|---|\n");
  size_t standard_linears = 0, standard_block = 0;
  for (const LinearRecipe& recipe : linear_recipes()) {
    const size_t kept[] = {
        kept_by_linear(recipe, tokens, width, 3 * width), kept_by_linear(recipe, tokens, width, width),
        kept_by_linear(recipe, tokens, width, 4 * width), kept_by_linear(recipe, tokens, 4 * width, width)};
    const size_t linears = kept[0] + kept[1] + kept[2] + kept[3],
                 block = kept_by_block(recipe, tokens, width);
    if (recipe.name == "standard") standard_linears = linears, standard_block = block;
    std::printf("| `%s` |", std::string(recipe.name).c_str());
    for (size_t bytes : kept) std::printf(" %.2f |", units(bytes));
    std::printf(" %.2f | %.1f %% | %.2f | %.1f %% |\n", units(linears),
                100 * static_cast<double>(linears) / static_cast<double>(standard_linears), units(block),
                100 * static_cast<double>(block) / static_cast<double>(standard_block));
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace

int main(int count, char** arguments) { return run_program("bench_memory", run, count, arguments); }
