// init.h: how a parameter gets its first values. Drawn on the CPU from a Philox stream named by (seed,
// parameter name), so the values depend neither on the device nor on the order of construction.
#pragma once

#include <cstdint>
#include <string_view>

#include "runtime/tensor.h"

namespace switchback {

struct Init {
  enum Kind : uint8_t { constant, normal, uniform } kind = constant;
  double amount = 0;  // the constant, the standard deviation, or the bound of U(-amount, amount)

  static Init zeros() { return {constant, 0}; }
  static Init ones() { return {constant, 1}; }
  static Init value(double v) { return {constant, v}; }
  static Init normal_with(double std) { return {normal, std}; }
  static Init uniform_within(double bound) { return {uniform, bound}; }
};

// values: a CPU tensor of f32 or f64
void initialize(const Tensor& values, Init init, uint64_t seed, std::string_view name);

}  // namespace switchback
