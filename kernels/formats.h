// formats.h: the number formats of low-precision linears, and what a quantised matrix is.
//
// A quantised matrix is codes times scales,
//   x ≈ value(code) · scale,   scale = absmax/largest value of the format
// with one scale for everything, for each row, or for each column (paper section 1.1). Definitions to the
// bit: kernels/quantize.h.
#pragma once

#include "runtime/tensor.h"

namespace switchback {

enum class Format : uint8_t {
  none,        // as it is: the tensor's own type, no scale
  int8,        // -127 .. 127
  e4m3,        // OCP 8-bit floats (what GPUs compute with): largest 448,
  e5m2,        // and 57344
  paper_e4m3,  // the paper's simulated grids (its section 1.2): no Inf or NaN, so largest 480 and 114688, and
  paper_e5m2,  // subnormals four times too small. They have no codes here: values are rounded to them.
  exact,       // codes are the values themselves and every scale is 1: what tests put in a format's place
};
enum class Granularity : uint8_t { tensor, row, column };  // what shares a scale

constexpr const char* name_of(Format format) {
  constexpr const char* names[] = {"none", "int8", "e4m3", "e5m2", "paper_e4m3", "paper_e5m2", "exact"};
  return names[static_cast<int>(format)];
}
constexpr const char* name_of(Granularity by) {
  constexpr const char* names[] = {"tensor", "row", "column"};
  return names[static_cast<int>(by)];
}
inline std::ostream& operator<<(std::ostream& out, Format format) { return out << name_of(format); }
inline std::ostream& operator<<(std::ostream& out, Granularity by) { return out << name_of(by); }

constexpr bool has_codes(Format f) { return f == Format::int8 || f == Format::e4m3 || f == Format::e5m2; }
// What codes are held in: i8, u8 (fp8: sign, exponent, mantissa), or `exact`'s values.
constexpr DType code_dtype(Format f, DType values) {
  return f == Format::int8 ? DType::i8 : f == Format::exact ? values : DType::u8;
}

// One operand of a product of codes: codes (rows, inner), scale (1) or (rows) f32.
struct CodeView {
  CView codes, scale;
  Format format = Format::none;
  explicit operator bool() const { return static_cast<bool>(codes); }
};

// Where a kernel that makes rows of values leaves their codes, too; empty: nobody wants them.
struct RowCodes {
  View codes, scale;  // (M, C), (M)
  Format format = Format::none;
  explicit operator bool() const { return static_cast<bool>(codes); }
};

// A weight and where its codes go: codes (N, K), transposed (K, N), scale: copies of the one.
struct WeightCodes {
  View codes, transposed, scale;
  CView w;        // (N, K)
  CView largest;  // (1) f32: its absolute maximum, where it is known
};

struct Codes {  // owns
  Tensor codes, scale;
  Format format = Format::none;
  operator CodeView() const { return {codes, scale, format}; }
  operator RowCodes() const { return {codes, scale, format}; }
  bool defined() const { return codes.defined(); }
};

}  // namespace switchback
