// The f32 exp and normal distribution against the standard library in f64, over all of their range; our
// matrix product against plain loops.
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/math.h"
#include "tests/kernels/testing.h"

using namespace switchback;

TEST_CASE("exp_of") {
  double largest = 0;
  for (float x = -87.2f; x < 88.6f; x += 1.7e-4f) {
    const double exact = std::exp(static_cast<double>(x));
    largest = std::max(largest, std::fabs(static_cast<double>(exp_of(x)) - exact) / exact);
  }
  INFO("largest relative error ", largest);
  CHECK(largest < 1e-7);
  CHECK(exp_of(0.0f) == 1.0f);
  CHECK(exp_of(-1000.0f) == 0.0f);
  CHECK(exp_of(-INFINITY) == 0.0f);
  CHECK(std::isinf(exp_of(89.0f)));
  CHECK(std::isinf(exp_of(INFINITY)));
  CHECK(std::isnan(exp_of(NAN)));
}

TEST_CASE("normal distribution") {
  double cdf = 0, relative = 0, density = 0;
  for (float x = -12; x < 12; x += 2.3e-5f) {
    const Normal<float> ours = normal(x);
    const Normal<double> exact = normal(static_cast<double>(x));
    cdf = std::max(cdf, std::fabs(static_cast<double>(ours.cdf) - exact.cdf));
    density = std::max(density, std::fabs(static_cast<double>(ours.density) - exact.density));
    if (x > -10)
      relative = std::max(relative, std::fabs(static_cast<double>(ours.cdf) - exact.cdf) / exact.cdf);
  }
  INFO("largest error of cdf ", cdf, " (relative ", relative, "), of density ", density);
  CHECK(cdf < 3e-7);
  CHECK(relative < 2.5e-6);
  CHECK(density < 5e-8);
  CHECK(std::isnan(normal(NAN).cdf));
  CHECK(normal(INFINITY).cdf == 1.0f);
  CHECK(normal(-INFINITY).cdf == 0.0f);
}

TEST_CASE("our own matrix product, odd sizes, strides, all layouts") {
  for (const Shape& s : {Shape{1, 1, 1}, Shape{17, 17, 32}, Shape{13, 33, 5}, Shape{50, 64, 50},
                         Shape{29, 65, 700}, Shape{3, 2, 0}})
    for (bool ta : {false, true})
      for (bool tb : {false, true})
        for (bool accumulate : {false, true}) {
          const int64_t m = s[0], n = s[1], k = s[2], gap = 3;
          const int64_t a_stride = (ta ? m : k) + gap, b_stride = (tb ? k : n) + gap, c_stride = n + gap;
          const Array a = random("a", {(ta ? k : m) * a_stride + 1}).values;
          const Array b = random("b", {(tb ? n : k) * b_stride + 1}).values;
          Array c(m * c_stride, 2.0), expected = c;
          for (int64_t i = 0; i < m; ++i)
            for (int64_t j = 0; j < n; ++j) {
              double sum = accumulate ? 2.0 : 0.0;
              for (int64_t p = 0; p < k; ++p)
                sum += (ta ? a[p * a_stride + i] : a[i * a_stride + p]) *
                       (tb ? b[j * b_stride + p] : b[p * b_stride + j]);
              expected[i * c_stride + j] = sum;
            }
          const std::vector<float> a32(a.begin(), a.end()), b32(b.begin(), b.end());
          std::vector<float> c32(c.begin(), c.end());
          multiply_blocked<double>({c.data(), c_stride}, accumulate, {a.data(), a_stride, ta},
                                   {b.data(), b_stride, tb}, m, n, k);
          multiply_blocked<float>({c32.data(), c_stride}, accumulate, {a32.data(), a_stride, ta},
                                  {b32.data(), b_stride, tb}, m, n, k);
          INFO(s[0], " ", s[1], " ", s[2], " ", ta, tb, accumulate);
          CHECK(error_of(c, expected) < 1e-13);
          CHECK(error_of(Array(c32.begin(), c32.end()), expected) < 1e-6);
        }
}
