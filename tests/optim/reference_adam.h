// reference_adam.h: Adam as textbooks write it, one tensor at a time in double: biased moments m and v,
// corrected afterwards. The engine folds the correction into its decay rates; that both are the same is what
// the tests show.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

struct ReferenceTensor {
  std::vector<double> theta, m, v;
  double weight_decay = 0, rate_scale = 1;

  explicit ReferenceTensor(std::vector<double> values)
      : theta(std::move(values)), m(theta.size(), 0.0), v(theta.size(), 0.0) {}
};

struct ReferenceAdam {
  double beta1 = 0.9, beta2 = 0.98, epsilon = 1e-6;
  bool clip_update = false, decay_clipped_rate = false;
  double clip_threshold = 1;

  // Step t = 1, 2, ...; returns sqrt(mean(g²/max(v̂, ε²))).
  double step(ReferenceTensor& tensor, const std::vector<double>& gradient, int t,
              double learning_rate) const {
    const double correction1 = 1 - std::pow(beta1, t), correction2 = 1 - std::pow(beta2, t);
    const size_t n = tensor.theta.size();
    double ratio = 0;
    for (size_t i = 0; i < n; ++i) {
      const double g = gradient[i];
      tensor.m[i] = beta1 * tensor.m[i] + (1 - beta1) * g;
      tensor.v[i] = beta2 * tensor.v[i] + (1 - beta2) * g * g;
      ratio += g * g / std::max(tensor.v[i] / correction2, epsilon * epsilon);
    }
    const double rms = std::sqrt(ratio / static_cast<double>(n));
    const double full_rate = learning_rate * tensor.rate_scale;
    const double rate = clip_update ? full_rate / std::max(1.0, rms / clip_threshold) : full_rate;
    const double decay = (decay_clipped_rate ? rate : full_rate) * tensor.weight_decay;
    for (size_t i = 0; i < n; ++i)
      tensor.theta[i] = tensor.theta[i] * (1 - decay) -
                        rate * (tensor.m[i] / correction1) / (std::sqrt(tensor.v[i] / correction2) + epsilon);
    return rms;
  }
};
