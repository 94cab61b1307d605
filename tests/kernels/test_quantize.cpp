// Quantisers against definitions written anew: grids as lists of values, the nearest by search, in f64.
#include <algorithm>
#include <bit>

#include "kernels/quantize.h"
#include "tests/kernels/testing.h"
#ifdef SWITCHBACK_TOOLKIT_FP8
#include <cuda_fp8.h>
#endif

using namespace switchback;

namespace {

// Non-negative values of a format in ascending order; the place in the list is the code.
std::vector<double> values_of(int mantissa, double least_normal, double unit, double largest) {
  std::vector<double> values;
  for (int m = 0; m < 1 << mantissa; ++m) values.push_back(m * unit);
  for (double power = least_normal; power <= largest; power *= 2)
    for (int m = 0; m < 1 << mantissa; ++m)
      if (const double v = power * (1 + m / double(1 << mantissa)); v <= largest) values.push_back(v);
  return values;
}
const std::vector<double>& grid_of(Format format) {
  static const std::map<Format, std::vector<double>> grids = {
      {Format::e4m3, values_of(3, 0x1p-6, 0x1p-9, 448)},
      {Format::e5m2, values_of(2, 0x1p-14, 0x1p-16, 57344)},
      {Format::paper_e4m3, values_of(3, 0x1p-6, 0x1p-11, 480)},
      {Format::paper_e5m2, values_of(2, 0x1p-14, 0x1p-18, 114688)},
  };
  return grids.at(format);
}
// The nearest code; a tie goes to the even one, what is beyond to the last.
size_t nearest(const std::vector<double>& values, double magnitude) {
  const auto above = std::lower_bound(values.begin(), values.end(), magnitude);
  if (above == values.begin()) return 0;
  if (above == values.end()) return values.size() - 1;
  const size_t high = static_cast<size_t>(above - values.begin()), low = high - 1;
  const double up = values[high] - magnitude, down = magnitude - values[low];
  return up != down ? (up < down ? high : low) : high % 2 == 0 ? high : low;
}

float on_grid_of(Format format, float v) {
  switch (format) {
    case Format::e4m3:
      return on_grid<Format::e4m3>(v);
    case Format::e5m2:
      return on_grid<Format::e5m2>(v);
    case Format::paper_e4m3:
      return on_grid<Format::paper_e4m3>(v);
    default:
      return on_grid<Format::paper_e5m2>(v);
  }
}

// All finite bf16 numbers, and around every value and every middle of two values the floats next to them.
std::vector<float> telling_inputs(Format format) {
  std::vector<float> inputs;
  for (uint32_t bits = 0; bits < 65536; ++bits)
    if (const float v = std::bit_cast<float>(bits << 16); std::isfinite(v)) inputs.push_back(v);
  const auto& values = grid_of(format);
  for (size_t i = 0; i + 1 < values.size(); ++i)
    for (double at : {values[i], (values[i] + values[i + 1]) / 2})
      for (float v : {static_cast<float>(at), std::nextafterf(static_cast<float>(at), 0.0f),
                      std::nextafterf(static_cast<float>(at), INFINITY)}) {
        inputs.push_back(v);
        inputs.push_back(-v);
      }
  return inputs;
}

constexpr Format grids[] = {Format::e4m3, Format::e5m2, Format::paper_e4m3, Format::paper_e5m2};

Tensor matrix(int64_t rows, int64_t cols, DType dtype, uint64_t seed = 1) {
  Random r(seed);
  Tensor x({rows, cols}, dtype);
  visit_float(dtype, "matrix", [&](auto tag) {
    using T = decltype(tag);
    int64_t i = 0;
    for (T& v : x.span<T>())
      v = static_cast<T>(static_cast<float>((2 * r.uniform() - 1) * std::exp2(double(i++ % cols % 5))));
  });
  return x;
}
double value_at(const Tensor& x, int64_t i) {
  return visit_float(x.dtype(), "value_at", [&](auto tag) { return double(x.span<decltype(tag)>()[i]); });
}

}  // namespace

TEST_CASE("the grids are the published ones") {
  CHECK(grid_of(Format::e4m3).size() == 127);  // 0x7f is NaN
  CHECK(grid_of(Format::e5m2).size() == 124);
  CHECK(grid_of(Format::paper_e4m3).size() == 128);
  CHECK(grid_of(Format::paper_e5m2).size() == 128);
  for (Format f : grids) CHECK(grid_of(f).back() == largest_of(f));
}

TEST_CASE("rounding to a grid is the nearest value, for all bf16 numbers and all ties") {
  for (Format format : grids) {
    const auto& values = grid_of(format);
    int wrong = 0;
    for (float v : telling_inputs(format)) {
      const double expected = std::copysign(values[nearest(values, std::fabs(double(v)))], v);
      const float rounded = on_grid_of(format, v);
      wrong += !(rounded == expected && std::signbit(rounded) == std::signbit(v));
    }
    INFO(name_of(format));
    CHECK(wrong == 0);
  }
}

TEST_CASE("codes of 8-bit floats: all decode, and encode to themselves") {
  const auto check = [&]<Format format>() {
    const auto& values = grid_of(format);
    for (int code = 0; code < 256; ++code) {
      const float value = value_of_float8<format>(static_cast<uint8_t>(code));
      const size_t magnitude = code & 0x7f;
      if (magnitude < values.size()) {
        CHECK(value == (code & 0x80 ? -values[magnitude] : values[magnitude]));
        CHECK(float8_of<format>(value) == code);
      } else if (format == Format::e5m2 && magnitude == 0x7c) {
        CHECK(std::isinf(value));
      } else {
        CHECK(std::isnan(value));
      }
    }
    int wrong = 0;
    for (float v : telling_inputs(format)) {
      const size_t expected = nearest(values, std::fabs(double(v))) | (std::signbit(v) ? 0x80 : 0);
      wrong += float8_of<format>(v) != expected;
    }
    CHECK(wrong == 0);
  };
  check.operator()<Format::e4m3>();
  check.operator()<Format::e5m2>();
}

#ifdef SWITCHBACK_TOOLKIT_FP8
TEST_CASE("codes of 8-bit floats are those of the CUDA toolkit") {
  int wrong = 0;
  for (float v : telling_inputs(Format::e4m3))
    wrong += float8_of<Format::e4m3>(v) != __nv_cvt_float_to_fp8(v, __NV_SATFINITE, __NV_E4M3);
  for (float v : telling_inputs(Format::e5m2))
    wrong += float8_of<Format::e5m2>(v) != __nv_cvt_float_to_fp8(v, __NV_SATFINITE, __NV_E5M2);
  CHECK(wrong == 0);
}
#endif

TEST_CASE("int8 rounds to the nearest, ties to even") {
  for (int i = -126; i <= 126; ++i)
    for (float v :
         {float(i), i + 0.5f, i - 0.5f, std::nextafterf(i + 0.5f, 1e9f), std::nextafterf(i + 0.5f, -1e9f)})
      CHECK(int8_of(v, 1) == static_cast<int>(std::nearbyint(v)));
  CHECK(int8_of(std::nextafterf(127, 1e9f), 1) == 127);
  CHECK(int8_of(std::nextafterf(-127, -1e9f), 1) == -127);
}

TEST_CASE("int8: of the exact product, also where its rounding to f32 would make a tie") {
  int wrong = 0, ties_of_f32 = 0;
  for (int i = 128; i < 256; ++i)
    for (int k = 0; k < 127; ++k)
      for (int step : {-1, 0, 1}) {
        const float x = static_cast<float>(i) / 128;  // all bf16 in [1, 2)
        float inverse = static_cast<float>((k + 0.5L) / static_cast<long double>(x));
        if (step != 0) inverse = std::nextafterf(inverse, step > 0 ? 1e9f : 0.0f);
        const long double exact = static_cast<long double>(x) * inverse;  // 32 bits
        ties_of_f32 += x * inverse == static_cast<float>(k) + 0.5f && exact != k + 0.5L;
        wrong +=
            int8_of(x, inverse) != std::nearbyint(exact) || int8_of(-x, inverse) != std::nearbyint(-exact);
      }
  CHECK(wrong == 0);
  CHECK(ties_of_f32 > 1000);
}

TEST_CASE("scales: zeros, numbers too small, infinities and NaN") {
  const auto of = [](float absmax) { return scaling_of(magnitude_bits(absmax), 127); };
  CHECK(of(254).scale == 2);
  CHECK(of(254).inverse == 0.5f);
  for (float small : {0.0f, 1e-40f, 0x1p-111f}) {
    CHECK(of(small).inverse == 0);
    CHECK(of(small).scale == 0);
  }
  CHECK(std::isfinite(scaling_of(magnitude_bits(0x1p-110f), 114688).inverse));
  CHECK(of(0x1p-110f).scale > 0);
  for (float bad : {INFINITY, -INFINITY, NAN}) {
    CHECK(of(bad).inverse == 0);
    CHECK(std::isnan(of(bad).scale));
  }
}

TEST_CASE("quantize: every format, granularity and type, against its definition") {
  Kernels& k = kernels(cpu_device);
  for (DType dtype : {DType::f64, DType::f32, DType::bf16})
    for (Format format : {Format::int8, Format::e4m3, Format::e5m2})
      for (Granularity by : {Granularity::tensor, Granularity::row, Granularity::column}) {
        const int64_t rows = 37, cols = 21, padded = 48;
        const Tensor x = matrix(rows, cols, dtype);
        const int64_t scales = by == Granularity::tensor ? 1 : by == Granularity::row ? rows : cols;
        Tensor codes({rows, cols}, code_dtype(format, dtype)), transposed({cols, padded}, codes.dtype()),
            only({cols, padded}, codes.dtype()), scale({scales}, DType::f32), largest({scales}, DType::f32);
        k.absolute_maximum(largest, x, by);
        k.quantize(codes, transposed, scale, x, {}, format, by);
        std::vector<float> absmax(scales, 0.0f);
        const auto scale_of = [&](int64_t i) {
          return by == Granularity::tensor ? 0 : by == Granularity::row ? i / cols : i % cols;
        };
        for (int64_t i = 0; i < rows * cols; ++i)
          absmax[scale_of(i)] = std::max(absmax[scale_of(i)], std::fabs(float(value_at(x, i))));
        int wrong = 0;
        const auto* code = static_cast<const uint8_t*>(codes.data());
        for (int64_t s = 0; s < scales; ++s) {
          wrong += largest.span<float>()[s] != absmax[s];
          wrong += scale.span<float>()[s] != absmax[s] / largest_of(format);
        }
        for (int64_t i = 0; i < rows * cols; ++i) {
          const float inverse = largest_of(format) / absmax[scale_of(i)], v = float(value_at(x, i)) * inverse;
          uint8_t expected;
          if (format == Format::int8)
            expected = static_cast<uint8_t>(static_cast<int>(std::nearbyint(v)));
          else
            expected =
                static_cast<uint8_t>(nearest(grid_of(format), std::fabs(double(v))) | (v < 0 ? 0x80 : 0));
          wrong += code[i] != expected;
          wrong += static_cast<const uint8_t*>(transposed.data())[i % cols * padded + i / cols] != expected;
        }
        for (int64_t c = 0; c < cols; ++c)
          for (int64_t row = rows; row < padded; ++row)
            wrong += static_cast<const uint8_t*>(transposed.data())[c * padded + row] != 0;
        k.quantize({}, only, scale, x, largest, format, by);  // transposed alone, from a known maximum
        wrong += std::memcmp(only.data(), transposed.data(), size_t(cols * padded)) != 0;
        INFO(name_of(dtype), " ", name_of(format), " by ", name_of(by));
        CHECK(wrong == 0);
      }
}

TEST_CASE("codes the other way round are what the quantiser makes transposed") {
  Kernels& k = kernels(cpu_device);
  for (Format format : {Format::int8, Format::e4m3}) {
    std::vector<Tensor> made, turned;
    std::vector<WeightCodes> weights;
    for (int64_t rows : {1, 16, 37}) {
      const Tensor x = matrix(rows, 21, DType::f32);
      const Tensor codes(x.shape(), code_dtype(format, x.dtype())), scale({1}, DType::f32);
      made.emplace_back(Shape{21, rows}, codes.dtype());
      turned.emplace_back(Shape{21, rows}, codes.dtype());
      k.quantize(codes, made.back(), scale, x, {}, format, Granularity::tensor);
      weights.push_back({codes, turned.back(), scale, {}, {}});
      made.push_back(codes), turned.push_back(codes);  // alive until the call
    }
    k.transpose_codes(weights);
    for (size_t i = 0; i < made.size(); i += 2)
      CHECK(std::memcmp(made[i].data(), turned[i].data(), CView(made[i]).bytes()) == 0);
  }
}

TEST_CASE("quantize with sums over the rows: the same codes, and the sums") {
  Kernels& k = kernels(cpu_device);
  const Tensor x = Tensor::of<float>({3, 2}, {1, 2, 4, -8, 16, 32});
  Tensor codes({3, 2}, DType::i8), other({3, 2}, DType::i8), scale({3}, DType::f32), sums({2}, DType::f32);
  k.quantize(codes, {}, scale, x, {}, Format::int8, Granularity::row);
  k.quantize(other, {}, scale, x, {}, Format::int8, Granularity::row, {sums});
  for (int i = 0; i < 6; ++i) CHECK(other.span<int8_t>()[i] == codes.span<int8_t>()[i]);
  CHECK(sums.span<float>()[0] == 21);
  CHECK(sums.span<float>()[1] == 26);
  k.quantize(other, {}, scale, x, {}, Format::int8, Granularity::row, {sums, true});
  CHECK(sums.span<float>()[0] == 42);
}

TEST_CASE("a row of zeros stays zero; an Inf or a NaN spoils its own row, visibly") {
  Kernels& k = kernels(cpu_device);
  const float inf = INFINITY, nan = NAN;
  const Tensor x = Tensor::of<float>({4, 3}, {0, -0.0f, 0, 1, inf, 2, nan, 1, 2, -3, 1.5f, 3});
  Tensor codes({4, 3}, DType::i8), scale({4}, DType::f32), back({4, 3}, DType::f32);
  k.quantize(codes, {}, scale, x, {}, Format::int8, Granularity::row);
  k.dequantize(back, codes, scale, Format::int8, Granularity::row);
  // 127/3 in f32 is less than 127/3, so 1.5 times that is less than 63.5.
  const std::vector<int8_t> expected = {0, 0, 0, 0, 0, 0, 0, 0, 0, -127, 63, 127};
  CHECK(std::vector<int8_t>(codes.span<int8_t>().begin(), codes.span<int8_t>().end()) == expected);
  CHECK(scale.span<float>()[0] == 0);
  CHECK(scale.span<float>()[3] == 3.0f / 127);
  for (int i = 0; i < 3; ++i) {
    CHECK(back.span<float>()[i] == 0);
    CHECK(std::isnan(back.span<float>()[3 + i]));
    CHECK(std::isnan(back.span<float>()[6 + i]));
  }
  CHECK(back.span<float>()[9] == -3);
  k.round_to_grid(back, x, {}, Format::paper_e5m2, Granularity::row);
  CHECK(back.span<float>()[1] == 0);
  CHECK(std::isnan(back.span<float>()[3]));
  CHECK(std::isnan(back.span<float>()[6]));
  CHECK(back.span<float>()[9] == -3);
}

TEST_CASE("round_to_grid quantises and dequantises at once") {
  Kernels& k = kernels(cpu_device);
  for (DType dtype : {DType::f32, DType::bf16})
    for (Format format : grids) {
      const Tensor x = matrix(9, 31, DType::f32);
      Tensor y({9, 31}, dtype), largest({9}, DType::f32);
      k.absolute_maximum(largest, x, Granularity::row);
      k.round_to_grid(y, x, {}, format, Granularity::row);
      int wrong = 0;
      for (int64_t i = 0; i < y.size(); ++i) {
        const float most = largest.span<float>()[i / 31],
                    v = x.span<float>()[i] * (largest_of(format) / most);
        const double on = std::copysign(grid_of(format)[nearest(grid_of(format), std::fabs(double(v)))], v);
        const float expected = float(on) * (most / largest_of(format));
        wrong += value_at(y, i) != (dtype == DType::f32 ? double(expected) : double(bfloat16(expected)));
      }
      INFO(name_of(dtype), " ", name_of(format));
      CHECK(wrong == 0);
    }
}

TEST_CASE("products of int8 codes are exact, also where all codes are the largest") {
  Kernels& k = kernels(cpu_device);
  struct Size {
    int64_t m, n, k;
    bool extreme;
  };
  for (const Size& s :
       {Size{1, 1, 1, false}, Size{33, 17, 70, false}, Size{130, 9, 2500, false}, Size{5, 7, 3000, true}}) {
    Random r(5);
    Tensor a({s.m, s.k}, DType::i8), b({s.n, s.k}, DType::i8), a_scale({s.m}, DType::f32),
        b_scale({s.n}, DType::f32);
    for (Tensor* t : {&a, &b})
      for (int8_t& v : t->span<int8_t>()) v = static_cast<int8_t>(s.extreme ? 127 : r.below(255) - 127);
    for (Tensor* t : {&a_scale, &b_scale})
      for (float& v : t->span<float>()) v = static_cast<float>(0.01 + r.uniform());
    for (bool one_scale : {false, true})
      for (DType dtype : {DType::f32, DType::bf16}) {
        const Tensor bias = matrix(1, s.n, dtype);
        Tensor y({s.m, s.n}, dtype);
        const Tensor of_b = one_scale ? b_scale.slice(0, 1) : b_scale;
        k.product_of_codes(y, {a, a_scale, Format::int8}, {b, of_b, Format::int8}, bias);
        int wrong = 0;
        for (int64_t i = 0; i < s.m; ++i)
          for (int64_t j = 0; j < s.n; ++j) {
            int64_t sum = 0;
            for (int64_t p = 0; p < s.k; ++p)
              sum += int64_t{a.span<int8_t>()[i * s.k + p]} * b.span<int8_t>()[j * s.k + p];
            const float scale = a_scale.span<float>()[i] * b_scale.span<float>()[one_scale ? 0 : j];
            const float expected =
                std::fma(static_cast<float>(sum), scale, static_cast<float>(value_at(bias, j)));
            wrong += value_at(y, i * s.n + j) !=
                     (dtype == DType::f32 ? double(expected) : double(bfloat16(expected)));
          }
        INFO(s.m, " ", s.n, " ", s.k);
        CHECK(wrong == 0);
      }
  }
}

TEST_CASE("products of 8-bit floats") {
  Kernels& k = kernels(cpu_device);
  const Tensor x = matrix(33, 50, DType::f32), w = matrix(20, 50, DType::f32, 2);
  Tensor a({33, 50}, DType::u8), b({20, 50}, DType::u8), a_scale({33}, DType::f32), b_scale({20}, DType::f32),
      y({33, 20}, DType::f32), a_values({33, 50}, DType::f32), b_values({20, 50}, DType::f32);
  k.quantize(a, {}, a_scale, x, {}, Format::e5m2, Granularity::row);
  k.quantize(b, {}, b_scale, w, {}, Format::e4m3, Granularity::row);
  k.product_of_codes(y, {a, a_scale, Format::e5m2}, {b, b_scale, Format::e4m3}, {});
  k.dequantize(a_values, a, a_scale, Format::e5m2, Granularity::row);
  k.dequantize(b_values, b, b_scale, Format::e4m3, Granularity::row);
  for (int64_t i = 0; i < 33; ++i)
    for (int64_t j = 0; j < 20; ++j) {
      double sum = 0, magnitude = 0;
      for (int64_t p = 0; p < 50; ++p) {
        const double term = value_at(a_values, i * 50 + p) * value_at(b_values, j * 50 + p);
        sum += term;
        magnitude += std::fabs(term);
      }
      CHECK(std::fabs(value_at(y, i * 20 + j) - sum) <= 1e-5 * magnitude);
    }
}
