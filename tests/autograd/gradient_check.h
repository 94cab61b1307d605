// gradient_check.h: backward passes against central differences, in f64.
//
// For y = f(inputs) and fixed random weights r, the number L = Σ r y has the analytic gradient that the tape
// gives for dy = r, and the numeric one (L(x + h) - L(x - h))/2h, element by element. h = 1e-5 leaves an
// error of about 1e-10; the bar is 1e-6 of the gradient's norm.
#pragma once

#include <cmath>
#include <functional>
#include <random>
#include <vector>

#include "autograd/ops.h"

#undef CHECK  // from here on it is doctest's
#include <doctest/doctest.h>

namespace switchback {

inline Tensor random_tensor(Shape shape, uint64_t seed, double scale = 1) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal(0, scale);
  Tensor t(shape, DType::f64);
  for (double& v : t.span<double>()) v = normal(random);
  return t;
}

using Function = std::function<Variable(const std::vector<Variable>&)>;

inline double weighted_sum(const Tensor& y, const Tensor& r) {
  double sum = 0;
  for (int64_t i = 0; i < y.size(); ++i) sum += y.span<double>()[i] * r.span<double>()[i];
  return sum;
}

// ‖a - b‖ / max(‖b‖, tiny)
inline double relative_error(std::span<const double> a, std::span<const double> b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(difference) / std::max(std::sqrt(norm), 1e-8);
}

// The numeric gradient of Σ r f(...) to the elements of `x`, which f reads.
inline std::vector<double> numeric_gradient(std::span<double> x, const std::function<double()>& weighted) {
  constexpr double h = 1e-5;
  std::vector<double> gradient(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const double before = x[i];
    x[i] = before + h;
    const double up = weighted();
    x[i] = before - h;
    const double down = weighted();
    x[i] = before;
    gradient[i] = (up - down) / (2 * h);
  }
  return gradient;
}

// Checks every input's gradient, once with all inputs wanting one, and once for each input frozen.
inline void check_gradients(const Function& f, const std::vector<Tensor>& tensors, double bar = 1e-6) {
  auto run = [&](size_t frozen) {
    std::vector<Variable> inputs;
    for (size_t i = 0; i < tensors.size(); ++i) inputs.emplace_back(tensors[i], i != frozen);
    Variable y = f(inputs);
    Tensor r = random_tensor(y.shape(), 99);
    if (!y.needs_grad()) return;  // the only input is frozen
    Tensor seed(y.shape(), DType::f64);
    kernels(cpu_device).cast(seed, r);
    y.adopt_grad(seed);
    tape().backward_from_gradients();
    CHECK_EQ(tape().size(), 0);
    for (size_t i = 0; i < tensors.size(); ++i) {
      INFO("input ", i, ", frozen ", static_cast<int64_t>(frozen));
      if (i == frozen) {
        CHECK_FALSE(inputs[i].has_grad());
        continue;
      }
      REQUIRE(inputs[i].has_grad());
      std::vector<double> numeric = numeric_gradient(tensors[i].span<double>(), [&] {
        Tape::Pause pause;
        return weighted_sum(f(inputs).value(), r);
      });
      CHECK_LE(relative_error(inputs[i].grad().span<double>(), numeric), bar);
    }
  };
  for (size_t frozen = 0; frozen <= tensors.size(); ++frozen)
    run(frozen == tensors.size() ? SIZE_MAX : frozen);
}

}  // namespace switchback
