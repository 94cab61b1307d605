// bfloat16 exhaustively, dtypes, shapes, tensors and their slices.
#include <bit>
#include <cmath>
#include <limits>
#include <sstream>

#include "runtime/tensor.h"

#undef CHECK  // from here on it is doctest's
#include <doctest/doctest.h>

using namespace switchback;

TEST_CASE("bfloat16: every value survives the way through float and double") {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    bfloat16 value;
    value.bits = static_cast<uint16_t>(bits);
    const float wide = static_cast<float>(value);
    const bfloat16 back(wide);
    if (std::isnan(wide)) {
      REQUIRE(std::isnan(static_cast<float>(back)));
    } else {
      REQUIRE_EQ(back.bits, value.bits);
      REQUIRE_EQ(static_cast<double>(value), static_cast<double>(wide));
    }
  }
}

TEST_CASE(
    "bfloat16: between any two neighbours, the middle goes to the even one and the rest to the nearer") {
  for (uint32_t bits = 0; bits < 0x7f80; ++bits) {  // all finite non-negative values, and their mirror images
    for (uint32_t sign : {0u, 0x80000000u}) {
      const auto round = [&](uint32_t low) {
        return bfloat16(std::bit_cast<float>(sign | (bits << 16) | low)).bits & 0x7fffu;
      };
      REQUIRE_EQ(round(0x7fff), bits);
      REQUIRE_EQ(round(0x8000), bits + (bits & 1));
      REQUIRE_EQ(round(0x8001), bits + 1);  // 0x7f80, infinity, after the largest
    }
  }
  CHECK_EQ(bfloat16(std::numeric_limits<float>::infinity()).bits, 0x7f80);
  CHECK(std::isnan(
      static_cast<float>(bfloat16(std::bit_cast<float>(0x7f800001u)))));  // payload in the low half
  CHECK(std::isnan(static_cast<float>(bfloat16(std::bit_cast<float>(0xffffffffu)))));
  CHECK_EQ(bfloat16(1.0f).bits, 0x3f80);
  CHECK_EQ(bfloat16(-0.0f).bits, 0x8000);
}

TEST_CASE("dtypes: sizes, names, dispatch") {
  CHECK_EQ(size_of(DType::bf16), sizeof(bfloat16));
  CHECK_EQ(size_of(DType::f64), 8);
  CHECK_EQ(size_of(DType::i8), 1);
  CHECK_EQ(std::string(name_of(DType::i64)), "i64");
  CHECK_EQ(visit_float(DType::bf16, "test", [](auto tag) { return sizeof(tag); }), 2);
  CHECK_EQ(visit_float(DType::f64, "test", [](auto tag) { return sizeof(tag); }), 8);
  CHECK_THROWS_WITH_AS(visit_float(DType::i32, "gelu", [](auto) {}),
                       "gelu: needs a floating-point tensor (f64, f32 or bf16), got i32", Error);
  CHECK_EQ(statistics_dtype(DType::bf16), DType::f32);
  CHECK_EQ(statistics_dtype(DType::f64), DType::f64);
}

TEST_CASE("shape: sizes, rows and columns, printing, limits") {
  const Shape s{2, 3, 5};
  CHECK_EQ(s.rank(), 3);
  CHECK_EQ(s.size(), 30);
  CHECK_EQ(s.rows(), 6);
  CHECK_EQ(s.cols(), 5);
  CHECK_EQ(s[-1], 5);
  CHECK_EQ(s[-3], 2);
  CHECK(s.with_cols(7) == Shape{2, 3, 7});
  CHECK(s.with_first(9) == Shape{9, 3, 5});
  CHECK_FALSE(Shape{2, 3} == Shape{2, 3, 1});
  CHECK_EQ(Shape{}.size(), 1);
  CHECK_EQ(Shape{}.rows(), 1);
  CHECK_EQ(Shape{0, 4}.size(), 0);
  CHECK_EQ(Shape{4, 0}.rows(), 0);
  std::ostringstream out;
  out << s << Shape{};
  CHECK_EQ(out.str(), "(2, 3, 5)()");
  CHECK_THROWS_AS((Shape{1, 2, 3, 4, 5}), Error);
  CHECK_THROWS_AS((Shape{-1}), Error);
  Shape grown;
  grown.append(4);
  CHECK(grown == Shape{4});
}

TEST_CASE("tensor: slices, reshapes and parts share storage and check their borders") {
  const Tensor t = Tensor::of<float>({4, 3}, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11});
  const Tensor rows = t.slice(1, 2);  // (2, 3)
  CHECK(rows.shape() == Shape{2, 3});
  CHECK_EQ(rows.span<float>()[0], 3);
  rows.span<float>()[5] = 100;
  CHECK_EQ(t.span<float>()[8], 100);
  CHECK_EQ(t.slice(4, 0).size(), 0);
  CHECK_EQ(t.slice(2, 1).slice(0, 1).span<float>()[0], 6);
  CHECK_THROWS_AS(t.slice(3, 2), Error);
  CHECK_THROWS_AS(t.slice(-1, 1), Error);

  const Tensor wide = t.reshape({2, 6});
  CHECK_EQ(wide.data(), t.data());
  CHECK_THROWS_AS(t.reshape({5, 2}), Error);

  const Tensor part = t.part(2, {2, 2});
  CHECK_EQ(part.span<float>()[3], 5);
  CHECK_THROWS_AS(t.part(9, {2, 2}), Error);

  CHECK_THROWS_AS(t.span<double>(), Error);
  CHECK_THROWS_AS(Tensor::of<float>({2}, {1, 2, 3}), Error);
  CHECK_EQ(CView(t).bytes(), 48);
  CHECK_THROWS_AS(CView(t).as<int>(), Error);
  CHECK_FALSE(Tensor().defined());
  CHECK_FALSE(static_cast<bool>(CView(Tensor())));
  CHECK(Tensor({0, 3}, DType::bf16).defined());
}

TEST_CASE("tensor: memory lives as long as its last handle") {
  Tensor slice;
  {
    const Tensor whole = Tensor::of<int32_t>({3}, {7, 8, 9});
    slice = whole.slice(2, 1);
  }
  const Tensor other({3}, DType::i32);
  for (int32_t& x : other.span<int32_t>()) x = 0;
  CHECK_EQ(slice.span<int32_t>()[0], 9);
}
