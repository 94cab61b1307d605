// quantization_noise.h: how far a product of quantised matrices is from the product.
//
// y = Σ_k u_k v_k, û = u + ξ, v̂ = v + ε. With independent elements of mean 0 the paper (its appendix C) has
//
//   noise variance   E[(Σ û v̂ - Σ u v)²] = k (σ_ξ² σ_v² + σ_ε² σ_u² + σ_ξ² σ_ε²)
//
// linear in the inner dimension k. Here both sides are measured: the left on real products in f64, the right
// from the second moments of u, v and of their own rounding errors. What the tensors of a training run add to
// the formula: elements that are not alike (a few large ones in a row), and scales that grow with k, because
// they are maxima over k elements.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "apps/linear_capture.h"
#include "kernels/formats.h"

namespace switchback {

// What is done to both operands. `row` means a scale for each vector that is multiplied: in the weight
// gradient these are columns of dy and x. The left operand is x, dy, and dyᵀ.
struct NoiseQuantizer {
  std::string_view name;
  Format value = Format::int8, gradient = Format::int8;  // x and w; dy.  none: bf16
  Granularity left = Granularity::row, right = Granularity::row;
};
std::span<const NoiseQuantizer> noise_quantizers();

enum class LinearProduct : uint8_t { forward, input_gradient, weight_gradient };
constexpr const char* name_of(LinearProduct product) {
  constexpr const char* names[] = {"forward", "input gradient", "weight gradient"};
  return names[static_cast<int>(product)];
}
constexpr LinearProduct linear_products[] = {LinearProduct::forward, LinearProduct::input_gradient,
                                             LinearProduct::weight_gradient};

// The length of the sum: K, N, or M.
int64_t inner_size(const LinearCapture& linear, LinearProduct product);

struct Noise {
  double relative = 0;   // rms of the error / rms of the exact product
  double predicted = 0;  // the same by the formula
  double variance = 0;   // of the error, in units of σ_u² σ_v²: of what k = 1 gives the exact product
};
// Over `samples` rows and columns of the result and `inner` of the sum's terms, all chosen by seed. Scales
// are of those terms: what a layer of that size would see. NaN where the product is zero.
Noise measure_noise(const LinearCapture& linear, LinearProduct product, const NoiseQuantizer& quantizer,
                    int64_t inner, int64_t samples, uint64_t seed);

// The slope of log y against log x: 1 where y grows like x. At least two points, all positive.
double growth_exponent(std::span<const double> x, std::span<const double> y);

}  // namespace switchback
