#include "models/position_resize.h"

#include <algorithm>
#include <cmath>

#include "runtime/check.h"

namespace switchback {
namespace {

double cubic(double t) {
  constexpr double a = -0.5;
  t = std::abs(t);
  if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
  if (t < 2) return (((t - 5) * t + 8) * t - 4) * a;
  return 0;
}

// Which old places a new one is made of.
struct Taps {
  int64_t first = 0;
  std::vector<double> weights;  // they sum to 1
};

std::vector<Taps> cubic_taps(int64_t old_size, int64_t new_size) {
  const double scale = static_cast<double>(old_size) / static_cast<double>(new_size);
  const double stretch = std::max(scale, 1.0), support = 2 * stretch;
  std::vector<Taps> all;
  for (int64_t i = 0; i < new_size; ++i) {
    const double centre = scale * (static_cast<double>(i) + 0.5);
    Taps taps;
    taps.first = std::max<int64_t>(static_cast<int64_t>(centre - support + 0.5), 0);
    const int64_t end = std::min<int64_t>(static_cast<int64_t>(centre + support + 0.5), old_size);
    double sum = 0;
    for (int64_t j = taps.first; j < end; ++j) {
      taps.weights.push_back(cubic((static_cast<double>(j) - centre + 0.5) / stretch));
      sum += taps.weights.back();
    }
    for (double& weight : taps.weights) weight /= sum;
    all.push_back(std::move(taps));
  }
  return all;
}

// from (outer, old, inner) -> (outer, new, inner)
std::vector<double> resample(const std::vector<double>& from, const std::vector<Taps>& taps, int64_t outer,
                             int64_t old_size, int64_t inner) {
  const int64_t new_size = std::ssize(taps);
  std::vector<double> to(static_cast<size_t>(outer * new_size * inner), 0);
  for (int64_t o = 0; o < outer; ++o)
    for (int64_t i = 0; i < new_size; ++i) {
      double* row = to.data() + (o * new_size + i) * inner;
      const Taps& t = taps[static_cast<size_t>(i)];
      for (size_t k = 0; k < t.weights.size(); ++k) {
        const double* source = from.data() + (o * old_size + t.first + static_cast<int64_t>(k)) * inner;
        for (int64_t c = 0; c < inner; ++c) row[c] += t.weights[k] * source[c];
      }
    }
  return to;
}

}  // namespace

std::vector<float> resize_grid(const std::vector<float>& from, int64_t old_grid, int64_t new_grid,
                               int64_t width) {
  CHECK(std::ssize(from) == old_grid * old_grid * width && new_grid > 0, "a grid of ", old_grid, " x ",
        old_grid, " x ", width, " has ", from.size(), " numbers");
  const std::vector<Taps> taps = cubic_taps(old_grid, new_grid);
  std::vector<double> values(from.begin(), from.end());
  values = resample(values, taps, old_grid, old_grid, width);      // (g, m, C)
  values = resample(values, taps, 1, old_grid, new_grid * width);  // (m, m, C)
  return {values.begin(), values.end()};
}

std::vector<float> resize_line(const std::vector<float>& from, int64_t old_length, int64_t new_length,
                               int64_t width) {
  CHECK(std::ssize(from) == old_length * width && old_length > 0 && new_length > 0, "a line of ", old_length,
        " x ", width, " has ", from.size(), " numbers");
  const double scale = static_cast<double>(old_length) / static_cast<double>(new_length);
  std::vector<float> to(static_cast<size_t>(new_length * width));
  for (int64_t i = 0; i < new_length; ++i) {
    const double place = std::max(0.0, scale * (static_cast<double>(i) + 0.5) - 0.5);
    const int64_t before = std::min(static_cast<int64_t>(place), old_length - 1);
    const int64_t after = std::min(before + 1, old_length - 1);
    const double share = place - static_cast<double>(before);
    for (int64_t c = 0; c < width; ++c)
      to[static_cast<size_t>(i * width + c)] =
          static_cast<float>((1 - share) * from[static_cast<size_t>(before * width + c)] +
                             share * from[static_cast<size_t>(after * width + c)]);
  }
  return to;
}

}  // namespace switchback
