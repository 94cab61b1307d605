// quantize.cpp: quantisers and products of codes, by definition (formats and rounding: kernels/quantize.h).
#include "kernels/quantize.h"

#include "kernels/cpu/access.h"
#include "kernels/cpu/gemm.h"

namespace switchback {
namespace {

// How many scales a matrix has, and which one element (row, column) uses.
int64_t scales_of(const CView& x, Granularity by) {
  return by == Granularity::tensor ? 1 : by == Granularity::row ? x.rows() : x.cols();
}
int64_t scale_at(Granularity by, int64_t row, int64_t column) {
  return by == Granularity::tensor ? 0 : by == Granularity::row ? row : column;
}

// largest (1), (M) or (N) f32: max |x|
template <class T>
void find_largest(float* largest, const T* x, int64_t rows, int64_t cols, Granularity by) {
  const auto of_row = [=](int64_t row) {
    uint32_t most = 0;
    for (int64_t i = row * cols; i < (row + 1) * cols; ++i)
      most = std::max(most, magnitude_bits(static_cast<float>(x[i])));
    return most;
  };
  if (by == Granularity::column) {
    std::fill_n(largest, cols, 0.0f);
    parallel_for(cols, std::max<int64_t>(16, elements_per_thread / std::max<int64_t>(1, rows)),
                 [=](int64_t from, int64_t to) {
                   for (int64_t row = 0; row < rows; ++row)
                     for (int64_t c = from; c < to; ++c) {
                       const uint32_t own = magnitude_bits(static_cast<float>(x[row * cols + c]));
                       if (own > rounded::bits_of(largest[c])) largest[c] = rounded::from_bits(own);
                     }
                 });
    return;
  }
  Tensor of_rows;
  float* to = largest;
  if (by == Granularity::tensor) {
    of_rows = Tensor({rows}, DType::f32);
    to = static_cast<float*>(of_rows.data());
  }
  for_rows(rows, cols, [=](int64_t row) { to[row] = rounded::from_bits(of_row(row)); });
  if (by == Granularity::row) return;
  uint32_t most = 0;
  for (int64_t row = 0; row < rows; ++row) most = std::max(most, rounded::bits_of(to[row]));
  *largest = rounded::from_bits(most);
}

// The scalings of x, from `largest` where it is given.
class Scalings {
 public:
  template <class T>
  Scalings(const T* x, const CView& shape, const CView& largest, Format format, Granularity by)
      : count_(scales_of(shape, by)), values_({2 * std::max<int64_t>(1, count_)}, DType::f32) {
    float* most = inverse();
    if (largest)
      std::copy_n(largest.as<float>(), count_, most);
    else
      find_largest(most, x, shape.rows(), shape.cols(), by);
    for (int64_t i = 0; i < count_; ++i) {
      const Scaling s = scaling_of(rounded::bits_of(most[i]), largest_of(format));
      inverse()[i] = s.inverse;
      scale()[i] = s.scale;
    }
  }
  float* inverse() { return static_cast<float*>(values_.data()); }
  float* scale() { return inverse() + std::max<int64_t>(1, count_); }

 private:
  int64_t count_;
  Tensor values_;
};

// codes[row, c] = transposed[c, row] = encode(x[row, c], inverse); the padding of `transposed` becomes 0.
template <class T, class Code, class Encode>
void encode_all(Code* codes, Code* transposed, int64_t padded, const T* x, int64_t rows, int64_t cols,
                const float* inverse, Granularity by, Encode encode) {
  if (codes) {
    for_rows(rows, cols, [=](int64_t row) {
      const T* from = x + row * cols;
      Code* to = codes + row * cols;
      if (by == Granularity::column) {
        for (int64_t c = 0; c < cols; ++c) to[c] = encode(from[c], inverse[c]);
      } else {
        const float all = inverse[scale_at(by, row, 0)];
        for (int64_t c = 0; c < cols; ++c) to[c] = encode(from[c], all);
      }
    });
  }
  if (transposed) {
    for_rows(cols, padded, [=](int64_t c) {
      Code* to = transposed + c * padded;
      for (int64_t row = 0; row < rows; ++row)
        to[row] = codes ? codes[row * cols + c] : encode(x[row * cols + c], inverse[scale_at(by, row, c)]);
      std::fill(to + rows, to + padded, Code(0.0f));
    });
  }
}

// Calls f(encode) with encode(x, inverse) -> code of a format.
template <class T, class F>
void visit_encoder(Format format, const char* op, F&& f) {
  const auto value = [](T x) { return static_cast<float>(x); };
  switch (format) {
    case Format::int8:
      return f([=](T x, float inverse) { return inverse == 0 ? int8_t{0} : int8_of(value(x), inverse); });
    case Format::e4m3:
      return f([=](T x, float inverse) {
        return inverse == 0 ? uint8_t{0} : float8_of<Format::e4m3>(rounded::multiply(value(x), inverse));
      });
    case Format::e5m2:
      return f([=](T x, float inverse) {
        return inverse == 0 ? uint8_t{0} : float8_of<Format::e5m2>(rounded::multiply(value(x), inverse));
      });
    case Format::exact:
      return f([](T x, float) { return x; });
    default:
      fail(op, ": ", format, " has no codes");
  }
}

// The values of codes as floats.
template <class R>
void decode(R* to, const CView& codes, Format format, int64_t from, int64_t count) {
  switch (format) {
    case Format::int8: {
      const int8_t* code = codes.as<int8_t>() + from;
      for (int64_t i = 0; i < count; ++i) to[i] = static_cast<R>(code[i]);
      return;
    }
    case Format::e4m3: {
      const uint8_t* code = codes.as<uint8_t>() + from;
      for (int64_t i = 0; i < count; ++i) to[i] = static_cast<R>(value_of_float8<Format::e4m3>(code[i]));
      return;
    }
    case Format::e5m2: {
      const uint8_t* code = codes.as<uint8_t>() + from;
      for (int64_t i = 0; i < count; ++i) to[i] = static_cast<R>(value_of_float8<Format::e5m2>(code[i]));
      return;
    }
    default:
      return visit_float(codes.dtype, "decode", [&](auto tag) {
        const auto* value = codes.as<decltype(tag)>() + from;
        for (int64_t i = 0; i < count; ++i) to[i] = static_cast<R>(value[i]);
      });
  }
}

}  // namespace

void CpuKernels::absolute_maximum(View largest, CView x, Granularity by) {
  const char* op = "absolute_maximum";
  check_place(op, "x", x, x.dtype);
  check_vector(op, "largest", largest, scales_of(x, by), DType::f32);
  visit_float(x.dtype, op, [&](auto tag) {
    find_largest(largest.as<float>(), x.as<decltype(tag)>(), x.rows(), x.cols(), by);
  });
}

void CpuKernels::quantize(View codes, View transposed, View scale, CView x, CView largest, Format format,
                          Granularity by, Sink sums) {
  const char* op = "quantize";
  if (sums) linear_backward_weight({}, sums, x, x);
  const int64_t rows = x.rows(), cols = x.cols(), padded = transposed ? transposed.cols() : rows;
  const DType code = code_dtype(format, x.dtype);
  check_place(op, "x", x, x.dtype);
  if (codes) check_matrix(op, "codes", codes, rows, cols, code);
  if (transposed) check_matrix(op, "transposed", transposed, cols, padded, code);
  CHECK(padded >= rows, op, ": transposed is ", transposed.shape, " for x ", x.shape);
  const bool spread = by == Granularity::tensor;  // as many copies of the one scale as there is room for
  check_vector(op, "scale", scale, spread ? scale.size() : scales_of(x, by), DType::f32);
  if (largest) check_vector(op, "largest", largest, scales_of(x, by), DType::f32);
  visit_float(x.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    const T* from = x.as<T>();
    Scalings scalings(from, x, largest, format, by);
    float* to = scale.as<float>();
    for (int64_t i = 0; i < scale.size(); ++i)
      to[i] = format == Format::exact ? 1.0f : scalings.scale()[spread ? 0 : i];
    visit_encoder<T>(format, op, [&](auto encode) {
      using Code = decltype(encode(T{}, 0.0f));
      encode_all(static_cast<Code*>(codes.data), static_cast<Code*>(transposed.data), padded, from, rows,
                 cols, scalings.inverse(), by, encode);
    });
  });
}

void CpuKernels::linear_backward_weight_and_codes(Sink dw, View codes, View scale, Sink sums, CView dy,
                                                  CView x, Format format) {
  quantize(codes, {}, scale, dy, {}, format, Granularity::row, sums);
  linear_backward_weight(dw, {}, dy, x);
}

void CpuKernels::product_and_codes(View y, View codes, View scale, CView x, const CodeView& b, CView bias,
                                   Format format) {
  quantize(codes, {}, scale, x, {}, format, Granularity::row);
  product_of_codes(y, {codes, scale, format}, b, bias);
}

void CpuKernels::quantize_weights(std::span<const WeightCodes> weights, Format format) {
  for (const WeightCodes& w : weights)
    quantize(w.codes, w.transposed, w.scale, w.w, w.largest, format, Granularity::tensor);
}

void CpuKernels::transpose_codes(std::span<const WeightCodes> weights) {
  const char* op = "transpose_codes";
  for (const WeightCodes& w : weights) {
    const int64_t rows = w.codes.rows(), cols = w.codes.cols();
    CHECK(size_of(w.codes.dtype) == 1, op, ": codes of ", w.codes.dtype);
    check_place(op, "codes", w.codes, w.codes.dtype);
    check_matrix(op, "transposed", w.transposed, cols, rows, w.codes.dtype);
    const auto* from = static_cast<const uint8_t*>(w.codes.data);
    auto* to = static_cast<uint8_t*>(w.transposed.data);
    for_rows(cols, rows, [=](int64_t c) {
      for (int64_t row = 0; row < rows; ++row) to[c * rows + row] = from[row * cols + c];
    });
  }
}

void CpuKernels::dequantize(View x, CView codes, CView scale, Format format, Granularity by) {
  const char* op = "dequantize";
  const int64_t rows = x.rows(), cols = x.cols();
  check_place(op, "x", x, x.dtype);
  check_matrix(op, "codes", codes, rows, cols, code_dtype(format, x.dtype));
  CHECK(by != Granularity::column, op, ": scales by column are not needed");
  CHECK(by == Granularity::tensor || scale.size() == rows, op, ": ", scale.size(), " scales for ", rows,
        " rows");
  check_vector(op, "scale", scale, scale.size(), DType::f32);
  const float* scales = scale.as<float>();
  visit_float(x.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    T* to = x.as<T>();
    for_rows(rows, cols, [&, to](int64_t row) {
      if (format == Format::exact) {
        std::copy_n(codes.as<T>() + row * cols, cols, to + row * cols);
        return;
      }
      float values[256];
      for (int64_t c = 0; c < cols; c += 256) {
        const int64_t count = std::min<int64_t>(256, cols - c);
        decode(values, codes, format, row * cols + c, count);
        const float own = scales[scale_at(by, row, 0)];
        for (int64_t i = 0; i < count; ++i)
          to[row * cols + c + i] = static_cast<T>(dequantized(values[i], own));
      }
    });
  });
}

namespace {
template <Format format>
float on_scaled_grid(float x, float inverse) {
  return on_grid<format>(rounded::multiply(x, inverse));
}
}  // namespace

void CpuKernels::round_to_grid(View y, CView x, CView largest, Format format, Granularity by) {
  const char* op = "round_to_grid";
  const int64_t rows = x.rows(), cols = x.cols();
  check_place(op, "x", x, x.dtype);
  check_matrix(op, "y", y, rows, cols, y.dtype);
  if (largest) check_vector(op, "largest", largest, scales_of(x, by), DType::f32);
  visit_float(x.dtype, op, [&](auto from_tag) {
    using From = decltype(from_tag);
    const From* from = x.as<From>();
    Scalings scalings(from, x, largest, format, by);
    const float *inverse = scalings.inverse(), *scale = scalings.scale();
    visit_float(y.dtype, op, [&](auto to_tag) {
      using To = decltype(to_tag);
      To* to = y.as<To>();
      const auto all = [&](auto grid) {
        for_rows(rows, cols, [=](int64_t row) {
          for (int64_t c = 0; c < cols; ++c) {
            const int64_t i = row * cols + c, s = scale_at(by, row, c);
            const float on = inverse[s] == 0 ? 0.0f : grid(static_cast<float>(from[i]), inverse[s]);
            to[i] = static_cast<To>(dequantized(on, scale[s]));
          }
        });
      };
      switch (format) {
        case Format::e4m3:
          return all(on_scaled_grid<Format::e4m3>);
        case Format::e5m2:
          return all(on_scaled_grid<Format::e5m2>);
        case Format::paper_e4m3:
          return all(on_scaled_grid<Format::paper_e4m3>);
        case Format::paper_e5m2:
          return all(on_scaled_grid<Format::paper_e5m2>);
        case Format::int8:
          return all([](float v, float inverse) { return static_cast<float>(int8_of(v, inverse)); });
        default:
          fail(op, ": ", format, " is not a grid");
      }
    });
  });
}

// int8: pieces of 1024 of the inner size, whose sums stay below 2^24, so that f32 products are exact in any
// order; the pieces are added as integers. 8-bit floats: sums in f32, in whatever order the product takes.
void CpuKernels::product_of_codes(View y, const CodeView& a, const CodeView& b, CView bias) {
  const char* op = "product_of_codes";
  const int64_t rows = a.codes.rows(), cols = b.codes.rows(), inner = a.codes.cols();
  check_place(op, "a", a.codes, code_dtype(a.format, y.dtype));
  check_matrix(op, "b", b.codes, cols, inner, code_dtype(b.format, y.dtype));
  check_matrix(op, "y", y, rows, cols, y.dtype);
  CHECK((a.format == Format::int8) == (b.format == Format::int8), op, ": ", a.format, " times ", b.format);
  CHECK(a.scale.size() == 1 || a.scale.size() == rows, op, ": ", a.scale.size(), " scales of a for ", rows,
        " rows");
  CHECK(b.scale.size() == 1 || b.scale.size() >= cols, op, ": ", b.scale.size(), " scales of b for ", cols,
        " rows");
  check_vector(op, "scale of a", a.scale, a.scale.size(), DType::f32);
  check_vector(op, "scale of b", b.scale, b.scale.size(), DType::f32);
  CHECK(inner <= 131072 || a.format != Format::int8, op, ": ", inner, " products may overflow 32 bits");
  if (bias) check_vector(op, "bias", bias, cols, y.dtype);
  if (y.size() == 0) return;
  visit_float(y.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    using R = Statistics<T>;
    const T* add = bias.as<T>();
    T* to = y.as<T>();
    const float *a_scale = a.scale.as<float>(), *b_scale = b.scale.as<float>();
    const bool rows_scaled = a.scale.size() > 1, cols_scaled = b.scale.size() >= cols;
    const int64_t piece = a.format == Format::int8 ? 1024 : std::max<int64_t>(1, inner);
    // A few rows of y at a time: their codes of a as values, and all of b's.
    Tensor right({cols, inner}, dtype_of<R>);
    for_rows(cols, inner, [&](int64_t row) {
      decode(static_cast<R*>(right.data()) + row * inner, b.codes, b.format, row * inner, inner);
    });
    constexpr int64_t rows_of_part = 128;
    parallel_for((rows + rows_of_part - 1) / rows_of_part, 1, [&](int64_t first_part, int64_t last_part) {
      Tensor left({rows_of_part, inner}, dtype_of<R>), sums({rows_of_part, cols}, dtype_of<R>),
          totals({rows_of_part, cols}, DType::i32);
      R *values = static_cast<R*>(left.data()), *sum = static_cast<R*>(sums.data());
      int32_t* total = static_cast<int32_t*>(totals.data());
      for (int64_t part = first_part; part < last_part; ++part) {
        const int64_t from = part * rows_of_part, count = std::min(rows_of_part, rows - from);
        decode(values, a.codes, a.format, from * inner, count * inner);
        std::fill_n(total, count * cols, 0);
        std::fill_n(sum, count * cols, R(0));
        for (int64_t k = 0; k < inner; k += piece) {
          multiply<R>({sum, cols}, false, {values + k, inner},
                      {static_cast<const R*>(right.data()) + k, inner, true}, count, cols,
                      std::min(piece, inner - k));
          if (a.format == Format::int8)
            for (int64_t i = 0; i < count * cols; ++i) total[i] += static_cast<int32_t>(sum[i]);
        }
        for (int64_t row = 0; row < count; ++row)
          for (int64_t c = 0; c < cols; ++c) {
            const int64_t i = row * cols + c, at = (from + row) * cols + c;
            if (a.format == Format::exact) {
              to[at] = static_cast<T>(sum[i] + (add ? static_cast<R>(add[c]) : R(0)));
              continue;
            }
            const float exact =
                a.format == Format::int8 ? static_cast<float>(total[i]) : static_cast<float>(sum[i]);
            to[at] = static_cast<T>(scaled_sum(exact, a_scale[rows_scaled ? from + row : 0],
                                               b_scale[cols_scaled ? c : 0],
                                               add ? static_cast<float>(add[c]) : 0.0f));
          }
      }
    });
  });
}

}  // namespace switchback
