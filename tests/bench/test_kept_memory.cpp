// SwitchBack-M's linears keep half as much as others, as bench_memory shows it.
#include "bench/kept_memory.h"

#undef CHECK  // from here on it is doctest's
#include <doctest/doctest.h>

using namespace switchback;

TEST_CASE("what a linear keeps for its backward pass: 16 bits a value, or 8") {
  constexpr int64_t M = 512, K = 256, N = 64;
  for (const LinearRecipe& recipe : linear_recipes()) {
    CAPTURE(std::string(recipe.name));
    const bool codes = recipe.saved != LinearRecipe::input;
    CHECK_EQ(codes, recipe.name == "switchback-m" || recipe.name == "fp8");
    const size_t kept = kept_by_linear(recipe, M, K, N), values = M * K * (codes ? 1 : 2);
    CHECK_GE(kept, values);
    CHECK_LE(kept, values + (codes ? 4 * M : 0));  // a scale for each row, at most
  }
}

TEST_CASE("what a block keeps by switchback-m: codes of what its linears read, and attention's result") {
  constexpr int64_t M = 512, C = 64;
  const auto units = [](std::string_view recipe) {
    return static_cast<double>(kept_by_block(linear_recipe(recipe), M, C)) / (M * C * 2);
  };
  CHECK_EQ(units("switchback") - units("standard"), doctest::Approx(0).epsilon(0.01));
  // 7 values a token and channel become half; attention keeps one of them all the same; 4 scales a token
  CHECK_EQ(units("standard") - units("switchback-m"),
           doctest::Approx(7 - 3.5 - 1 - 4 * 4.0 / (2 * C)).epsilon(0.02));
}
