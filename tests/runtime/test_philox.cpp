// Philox against the known answers published with Random123, and the generator's distributions.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "runtime/philox.h"

#include <doctest/doctest.h>

using namespace switchback;

namespace {

void check_words(PhiloxCounter got, PhiloxCounter want) {
  for (int i = 0; i < 4; ++i) CHECK_EQ(got[i], want[i]);
}

}  // namespace

TEST_CASE("philox: the three known answers of Random123") {
  check_words(philox({0, 0, 0, 0}, {0, 0}), {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  const uint32_t ones = 0xffffffff;
  check_words(philox({ones, ones, ones, ones}, {ones, ones}),
              {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  check_words(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
              {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
  static_assert(philox({0, 0, 0, 0}, {0, 0})[0] == 0x6627e8d5);
}

TEST_CASE("philox stream: words come in the order of the counter, streams and seeds differ") {
  PhiloxStream stream(0x123456789abcdef0, 0x0fedcba987654321);
  for (uint32_t block = 0; block < 3; ++block) {
    const PhiloxCounter want = philox({block, 0, 0x87654321, 0x0fedcba9}, {0x9abcdef0, 0x12345678});
    for (int i = 0; i < 4; ++i) CHECK_EQ(stream.next_u32(), want[i]);
  }
  CHECK_NE(PhiloxStream(1, 0).next_u64(), PhiloxStream(1, 1).next_u64());
  CHECK_NE(PhiloxStream(1, 0).next_u64(), PhiloxStream(2, 0).next_u64());
  CHECK_NE(PhiloxStream(1, RandomPurpose::shuffle, 0).next_u64(),
           PhiloxStream(1, RandomPurpose::initialization, 0).next_u64());
}

TEST_CASE("philox stream: moments of the distributions") {
  PhiloxStream random(5, 0);
  const int n = 200000;
  double sum = 0, squares = 0, normal_sum = 0, normal_squares = 0, normal_cubes = 0, fourth = 0, product = 0;
  float low = 1, high = 0;
  double previous = 0;
  for (int i = 0; i < n; ++i) {
    const float u = random.uniform();
    low = std::min(low, u), high = std::max(high, u);
    sum += u, squares += u * u;
    const double z = random.normal();
    normal_sum += z, normal_squares += z * z, normal_cubes += z * z * z, fourth += z * z * z * z;
    product += z * previous, previous = z;
  }
  CHECK_GE(low, 0);
  CHECK_LT(high, 1);
  // four standard errors each
  CHECK_LT(std::abs(sum / n - 0.5), 4 * 0.2887 / std::sqrt(n));
  CHECK_LT(std::abs(squares / n - 1 / 3.0), 4 * 0.2981 / std::sqrt(n));
  CHECK_LT(std::abs(normal_sum / n), 4 / std::sqrt(n));
  CHECK_LT(std::abs(normal_squares / n - 1), 4 * 1.4142 / std::sqrt(n));
  CHECK_LT(std::abs(normal_cubes / n), 4 * 3.873 / std::sqrt(n));
  CHECK_LT(std::abs(fourth / n - 3), 4 * 9.8 / std::sqrt(n));
  CHECK_LT(std::abs(product / n), 4 / std::sqrt(n));

  bool fine = false;  // more than 24 bits
  for (int i = 0; i < 100; ++i) {
    const double u = random.uniform_double();
    CHECK((u >= 0 && u < 1));
    fine = fine || u * 0x1p24 != std::floor(u * 0x1p24);
  }
  CHECK(fine);
}

TEST_CASE("philox stream: below(n) reaches every number about equally often") {
  PhiloxStream random(6, 0);
  std::vector<int> counts(7);
  for (int i = 0; i < 70000; ++i) ++counts[random.below(7)];
  for (int count : counts) CHECK_LT(std::abs(count - 10000), 4 * 93);
  CHECK_EQ(random.below(1), 0);
  const uint64_t n = 3ull << 62;  // a biased x % n would fall below 2^62 half of the time instead of a third
  int lower = 0;
  for (int i = 0; i < 9000; ++i) lower += random.below(n) < (1ull << 62);
  CHECK_LT(std::abs(lower - 3000), 4 * 45);
}
