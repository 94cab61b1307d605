// dtype.h: the element types of tensors, and the one dispatch helper that turns a run-time DType into a C++
// type.
#pragma once

#include <cstddef>
#include <cstdint>
#include <ostream>

#include "runtime/bfloat16.h"
#include "runtime/check.h"

namespace switchback {

enum class DType : uint8_t { f64, f32, bf16, i64, i32, i8, u8 };

constexpr size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f64: case DType::i64: return 8;
    case DType::f32: case DType::i32: return 4;
    case DType::bf16: return 2;
    case DType::i8: case DType::u8: return 1;
  }
  return 0;
}

constexpr const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::f64: return "f64";
    case DType::f32: return "f32";
    case DType::bf16: return "bf16";
    case DType::i64: return "i64";
    case DType::i32: return "i32";
    case DType::i8: return "i8";
    case DType::u8: return "u8";
  }
  return "?";
}
inline std::ostream& operator<<(std::ostream& out, DType dtype) { return out << name_of(dtype); }

template <class T> constexpr DType dtype_of = DType::u8;
template <> inline constexpr DType dtype_of<double> = DType::f64;
template <> inline constexpr DType dtype_of<float> = DType::f32;
template <> inline constexpr DType dtype_of<bfloat16> = DType::bf16;
template <> inline constexpr DType dtype_of<int64_t> = DType::i64;
template <> inline constexpr DType dtype_of<int32_t> = DType::i32;
template <> inline constexpr DType dtype_of<int8_t> = DType::i8;
template <> inline constexpr DType dtype_of<uint8_t> = DType::u8;

constexpr bool is_float(DType dtype) {
  return dtype == DType::f64 || dtype == DType::f32 || dtype == DType::bf16;
}

// The type of what is summed or kept beside values of type T: row statistics, losses, gradients of scalars,
// optimizer state. f64 stays f64 (gradient checks); everything else is held in f32.
constexpr DType statistics_dtype(DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; }
template <class T> struct StatisticsOf { using type = float; };
template <> struct StatisticsOf<double> { using type = double; };
template <class T> using Statistics = typename StatisticsOf<T>::type;

// Calls f(T{}) with the C++ type of a floating-point dtype:
//   visit_float(x.dtype, "gelu", [&](auto tag) { using T = decltype(tag); ... });
template <class F>
decltype(auto) visit_float(DType dtype, const char* op, F&& f) {
  switch (dtype) {
    case DType::f64: return f(double{});
    case DType::f32: return f(float{});
    case DType::bf16: return f(bfloat16{});
    default: fail(op, ": needs a floating-point tensor (f64, f32 or bf16), got ", dtype);
  }
}

}  // namespace switchback
