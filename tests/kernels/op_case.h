// op_case.h: one struct per case of an op. It serves three readers:
//   correctness   the definition (plain loops in f64, written from op_list.h) against any device and type
//   parity        one device against another on the same operands
//   speed         the same call on larger sizes; bytes and flops are known (bench/bench_kernels.cpp)
//
// Inputs are rounded to bf16 (statistics to f32) when the case is made, so every type starts from the same
// numbers.
#pragma once

#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "kernels/transfer.h"
#include "runtime/tensor.h"

namespace switchback {

using Array = std::vector<double>;
using Arrays = std::map<std::string, Array>;  // operands by name

struct Operand {
  enum Kind { value, statistics, f64, i64, i32, u8 };  // value: T, statistics: R
  enum Role { input, output, sink, in_out };
  std::string name;
  Kind kind = value;
  Role role = input;
  Shape shape;
  Array values;                  // of input and in_out; none when there are more than largest_drawn:
  double scale = 0, middle = 0;  // then bind() repeats one tile of random numbers, middle ± scale
};

// Larger operands serve for timing only.
inline constexpr int64_t largest_drawn = int64_t{1} << 24;

struct RunOptions {
  DType dtype = DType::f64;  // T
  bool accumulate = false;   // sinks add to start_of_sink
  bool wide_sinks = false;   // sinks of R
  std::string empty = {};    // the sink that nobody wants
  Device device = cpu_device;
};

inline double start_of_sink(size_t i) { return 0.25 * (static_cast<double>(i % 7) - 3); }

// The operands of a case as tensors on a device.
class Bound {
 public:
  Kernels& k;
  RunOptions options;
  std::map<std::string, Tensor> tensors;

  View operator()(const std::string& name) const { return tensors.at(name); }
  Sink sink(const std::string& name) const {
    if (name == options.empty) return {};
    return {tensors.at(name), options.accumulate};
  }
};

struct OpCase {
  std::string name;  // op and sizes
  std::vector<Operand> operands;
  std::function<void(const Bound&)> call;
  std::function<void(Arrays&)>
      define;        // reads the inputs, writes the outputs (there, zero-filled), all in f64
  double flops = 0;  // 0: bound by memory
  // Largest error allowed, relative to the largest magnitude of the output. f32: the sums' rounding; bf16:
  // half a unit of its 8 bits (2^-9 = 0.002) and some more where several roundings meet.
  double tolerance_f64 = 1e-12, tolerance_f32 = 3e-6, tolerance_bf16 = 5e-3;
  double tolerance_wide = tolerance_f32;  // f32 sinks of bf16 tensors

  double bytes(DType dtype) const;  // every operand moved once
};

// ---- making cases -----------------------------------------------------------------------------------------
class Random {  // the same numbers everywhere
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
  uint64_t bits() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }  // [0, 1)
  int64_t below(int64_t n) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(n)); }

 private:
  uint64_t state_;
};

inline uint64_t seed_of(const std::string& name) {
  uint64_t seed = 7;
  for (char c : name) seed = seed * 31 + static_cast<unsigned char>(c);
  return seed;
}

inline double round_as(Operand::Kind kind, double x) {
  if (kind == Operand::value) return static_cast<double>(bfloat16(static_cast<float>(x)));
  if (kind == Operand::statistics) return static_cast<double>(static_cast<float>(x));
  return x;
}

// Uniform in middle ± scale, rounded.
inline Operand random(const std::string& name, Shape shape, double scale = 1, double middle = 0,
                      Operand::Kind kind = Operand::value, Operand::Role role = Operand::input) {
  if (shape.size() > largest_drawn) return {name, kind, role, shape, {}, scale, middle};
  Random r(seed_of(name) + static_cast<uint64_t>(shape.size()));
  Array values(shape.size());
  for (double& v : values) v = round_as(kind, middle + scale * (2 * r.uniform() - 1));
  return {name, kind, role, shape, std::move(values)};
}
inline Operand given(const std::string& name, Shape shape, Array values, Operand::Kind kind,
                     Operand::Role role = Operand::input) {
  for (double& v : values) v = round_as(kind, v);
  return {name, kind, role, shape, std::move(values)};
}
inline Operand output(const std::string& name, Shape shape, Operand::Kind kind = Operand::value) {
  return {name, kind, Operand::output, shape, {}};
}
inline Operand sink(const std::string& name, Shape shape, Operand::Kind kind = Operand::value) {
  return {name, kind, Operand::sink, shape, {}};
}

// ---- running them -----------------------------------------------------------------------------------------
inline DType dtype_of_operand(const Operand& operand, const RunOptions& options) {
  switch (operand.kind) {
    case Operand::value:
      return operand.role == Operand::sink && options.wide_sinks ? statistics_dtype(options.dtype)
                                                                 : options.dtype;
    case Operand::statistics:
      return statistics_dtype(options.dtype);
    case Operand::f64:
      return DType::f64;
    case Operand::i64:
      return DType::i64;
    case Operand::i32:
      return DType::i32;
    case Operand::u8:
      return DType::u8;
  }
  return DType::f32;
}

inline double OpCase::bytes(DType dtype) const {
  double sum = 0;
  for (const Operand& o : operands)
    sum += static_cast<double>(o.shape.size()) * static_cast<double>(size_of(dtype_of_operand(o, {dtype}))) *
           (o.role == Operand::in_out ? 2 : 1);
  return sum;
}

template <class F>
void visit_any(DType dtype, F&& f) {
  switch (dtype) {
    case DType::i64:
      return f(int64_t{});
    case DType::i32:
      return f(int32_t{});
    case DType::u8:
      return f(uint8_t{});
    default:
      return visit_float(dtype, "op case", f);
  }
}

// A tensor too large to be drawn: copies of one tile, whose length no row size divides.
inline Tensor tiled(const Operand& o, const RunOptions& options) {
  const DType dtype = dtype_of_operand(o, options);
  const int64_t count = 7919 * 128, size = o.shape.size();
  Tensor tile({count}, dtype);
  Random r(seed_of(o.name));
  visit_any(dtype, [&](auto tag) {
    for (auto& v : tile.span<decltype(tag)>())
      v = static_cast<decltype(tag)>(o.middle + o.scale * (2 * r.uniform() - 1));
  });
  const bool by_kernel = is_float(dtype);  // only floats can be copied on the device
  Tensor whole({size}, dtype, by_kernel ? options.device : cpu_device);
  if (by_kernel) tile = to_device(tile, options.device);
  for (int64_t from = 0; from < size; from += count) {
    const int64_t n = std::min(count, size - from);
    if (by_kernel)
      kernels(options.device).cast(whole.slice(from, n), tile.slice(0, n));
    else
      std::memcpy(whole.slice(from, n).data(), tile.data(), static_cast<size_t>(n) * size_of(dtype));
  }
  return to_device(whole, options.device).reshape(o.shape);
}

// Outputs start as NaN (integers as -1): what a kernel forgets to write shows.
inline Bound bind(const OpCase& op, const RunOptions& options) {
  Bound bound{kernels(options.device), options, {}};
  for (const Operand& o : op.operands) {
    if (o.values.empty() && o.shape.size() > largest_drawn) {
      bound.tensors[o.name] = tiled(o, options);
      continue;
    }
    Tensor host(o.shape, dtype_of_operand(o, options));
    visit_any(host.dtype(), [&](auto tag) {
      using T = decltype(tag);
      const auto values = host.span<T>();
      for (size_t i = 0; i < values.size(); ++i) {
        double x = std::is_integral_v<T> ? -1 : std::numeric_limits<double>::quiet_NaN();
        if (!o.values.empty())
          x = o.values[i];
        else if (o.role == Operand::sink && options.accumulate)
          x = start_of_sink(i);
        values[i] = static_cast<T>(x);
      }
    });
    bound.tensors[o.name] = to_device(host, options.device);
  }
  return bound;
}

inline Array as_doubles(const Tensor& tensor) {
  const Tensor host = to_host(tensor);
  Array values;
  visit_any(host.dtype(), [&](auto tag) {
    for (auto v : host.span<decltype(tag)>()) values.push_back(static_cast<double>(v));
  });
  return values;
}

// Outputs by name; an empty sink's is left out.
inline Arrays run(const OpCase& op, const RunOptions& options) {
  const Bound bound = bind(op, options);
  op.call(bound);
  bound.k.synchronize();
  Arrays results;
  for (const Operand& o : op.operands)
    if (o.role != Operand::input && o.name != options.empty)
      results[o.name] = as_doubles(bound.tensors.at(o.name));
  return results;
}

inline Arrays definition(const OpCase& op) {
  Arrays arrays;
  for (const Operand& o : op.operands)
    arrays[o.name] = o.values.empty() ? Array(o.shape.size(), 0.0) : o.values;
  op.define(arrays);
  for (const Operand& o : op.operands)
    if (o.role == Operand::input) arrays.erase(o.name);
  return arrays;
}

// Largest |a - b| over the largest |b|; NaN or a missing value counts as infinite.
inline double error_of(const Array& a, const Array& b) {
  if (a.size() != b.size()) return INFINITY;
  double largest = 0, difference = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i]) != std::isnan(b[i])) return INFINITY;
    largest = std::max(largest, std::fabs(b[i]));
    difference = std::max(difference, std::fabs(a[i] - b[i]));
  }
  return difference == 0 ? 0 : difference / std::max(largest, 1e-30);
}

}  // namespace switchback
