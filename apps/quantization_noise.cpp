#include "apps/quantization_noise.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "kernels/kernels.h"
#include "runtime/philox.h"

namespace switchback {
namespace {

constexpr Granularity row = Granularity::row, tensor = Granularity::tensor;
constexpr std::array quantizers{
    NoiseQuantizer{"bf16", Format::none, Format::none, tensor, tensor},
    NoiseQuantizer{"int8 row", Format::int8, Format::int8, row, row},
    NoiseQuantizer{"int8 row/tensor", Format::int8, Format::int8, row, tensor},
    NoiseQuantizer{"int8 tensor", Format::int8, Format::int8, tensor, tensor},
    NoiseQuantizer{"fp8 row", Format::paper_e4m3, Format::paper_e5m2, row, row},
    NoiseQuantizer{"fp8 tensor", Format::paper_e4m3, Format::paper_e5m2, tensor, tensor},
};

// One operand, seen as (outer, inner) wherever the sum's index lies in memory.
struct Operand {
  const Tensor* matrix;
  bool transposed;
  Format format;
  Granularity by;
  int64_t outer() const { return transposed ? matrix->cols() : matrix->rows(); }
  int64_t inner() const { return transposed ? matrix->rows() : matrix->cols(); }
  float at(int64_t o, int64_t i) const {
    const float* values = matrix->span<float>().data();
    return transposed ? values[i * matrix->cols() + o] : values[o * matrix->cols() + i];
  }
};

// x (M, K), w (N, K), dy (M, N):  y = x wᵀ over K;  dx = dy w over N;  dw = dyᵀ x over M
std::array<Operand, 2> operands(const LinearCapture& l, LinearProduct product, const NoiseQuantizer& q) {
  switch (product) {
    case LinearProduct::forward:
      return {Operand{&l.x, false, q.value, q.left}, {&l.w, false, q.value, q.right}};
    case LinearProduct::input_gradient:
      return {Operand{&l.dy, false, q.gradient, q.left}, {&l.w, true, q.value, q.right}};
    default:
      return {Operand{&l.dy, true, q.gradient, q.left}, {&l.x, true, q.value, q.right}};
  }
}

// `count` of 0 .. n-1, each set equally likely, ascending; all of them when there are no more.
std::vector<int64_t> chosen(int64_t n, int64_t count, PhiloxStream& random) {
  std::vector<int64_t> all(static_cast<size_t>(n));
  std::iota(all.begin(), all.end(), 0);
  if (count >= n) return all;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t other = i + static_cast<int64_t>(random.below(static_cast<uint64_t>(n - i)));
    std::swap(all[static_cast<size_t>(i)], all[static_cast<size_t>(other)]);
  }
  all.resize(static_cast<size_t>(count));
  std::ranges::sort(all);
  return all;
}

struct Sampled {
  Tensor exact, rounded;                       // (samples, k) f64
  double second_moment = 0, error_moment = 0;  // means of u² and (û - u)²
};

Sampled sample(const Operand& operand, const std::vector<int64_t>& inner, int64_t samples,
               PhiloxStream& random) {
  const std::vector<int64_t> outer = chosen(operand.outer(), samples, random);
  const Shape shape{static_cast<int64_t>(outer.size()), static_cast<int64_t>(inner.size())};
  const Tensor values(shape, DType::f32);
  float* to = values.span<float>().data();
  for (const int64_t o : outer)
    for (const int64_t i : inner) *to++ = operand.at(o, i);

  Sampled s{Tensor(shape, DType::f64), Tensor(shape, DType::f64)};
  Kernels& k = kernels(cpu_device);
  k.cast(s.exact, values);
  if (operand.format == Format::none) {
    const Tensor narrow(shape, DType::bf16);
    k.cast(narrow, values);
    k.cast(s.rounded, narrow);
  } else if (operand.by == tensor) {  // of all rows, not of the sampled ones alone
    float largest = 0;
    for (int64_t o = 0; o < operand.outer(); ++o)
      for (const int64_t i : inner) largest = std::max(largest, std::abs(operand.at(o, i)));
    k.round_to_grid(s.rounded, values, Tensor::of<float>({1}, {largest}), operand.format, tensor);
  } else {
    k.round_to_grid(s.rounded, values, {}, operand.format, row);
  }
  const std::span<const double> exact = s.exact.span<double>(), rounded = s.rounded.span<double>();
  for (size_t i = 0; i < exact.size(); ++i) {
    s.second_moment += exact[i] * exact[i];
    s.error_moment += (rounded[i] - exact[i]) * (rounded[i] - exact[i]);
  }
  s.second_moment /= static_cast<double>(exact.size());
  s.error_moment /= static_cast<double>(exact.size());
  return s;
}

}  // namespace

std::span<const NoiseQuantizer> noise_quantizers() { return quantizers; }

int64_t inner_size(const LinearCapture& l, LinearProduct product) {
  return operands(l, product, quantizers[0])[0].inner();
}

Noise measure_noise(const LinearCapture& linear, LinearProduct product, const NoiseQuantizer& quantizer,
                    int64_t inner, int64_t samples, uint64_t seed) {
  const auto [left, right] = operands(linear, product, quantizer);
  CHECK(left.inner() == right.inner() && inner >= 1 && inner <= left.inner(), linear.name, ", ",
        name_of(product), ": ", inner, " of ", left.inner(), " and ", right.inner(), " terms");
  PhiloxStream random(seed, static_cast<uint64_t>(product));
  const std::vector<int64_t> terms = chosen(left.inner(), inner, random);
  const Sampled u = sample(left, terms, samples, random), v = sample(right, terms, samples, random);
  Kernels& k = kernels(cpu_device);
  const Tensor exact({u.exact.rows(), v.exact.rows()}, DType::f64), rounded(exact.shape(), DType::f64);
  k.matmul({exact}, u.exact, Transpose::no, v.exact, Transpose::yes);
  k.matmul({rounded}, u.rounded, Transpose::no, v.rounded, Transpose::yes);
  double signal = 0, noise = 0;
  for (size_t i = 0; i < exact.span<double>().size(); ++i) {
    const double y = exact.span<double>()[i], error = rounded.span<double>()[i] - y;
    signal += y * y;
    noise += error * error;
  }
  const double count = static_cast<double>(exact.size());
  signal /= count, noise /= count;
  const double of_one_term =
      u.error_moment * v.second_moment + v.error_moment * u.second_moment + u.error_moment * v.error_moment;
  const double predicted = static_cast<double>(inner) * of_one_term;
  return {std::sqrt(noise / signal), std::sqrt(predicted / signal),
          noise / (u.second_moment * v.second_moment)};
}

double growth_exponent(std::span<const double> x, std::span<const double> y) {
  CHECK(x.size() == y.size() && x.size() >= 2, "a slope of ", x.size(), " and ", y.size(), " points");
  double mean_x = 0, mean_y = 0, xx = 0, xy = 0;
  for (size_t i = 0; i < x.size(); ++i) mean_x += std::log(x[i]), mean_y += std::log(y[i]);
  mean_x /= static_cast<double>(x.size()), mean_y /= static_cast<double>(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    xx += (std::log(x[i]) - mean_x) * (std::log(x[i]) - mean_x);
    xy += (std::log(x[i]) - mean_x) * (std::log(y[i]) - mean_y);
  }
  return xy / xx;
}

}  // namespace switchback
