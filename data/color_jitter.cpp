#include "data/color_jitter.h"

#include <cmath>

namespace switchback {
namespace {

struct Color {
  float r, g, b;  // 0 to 255
};

float clipped(float x) { return std::min(255.0f, std::max(0.0f, x)); }
float gray_of(Color c) { return 0.299f * c.r + 0.587f * c.g + 0.114f * c.b; }  // ITU-R 601, as Pillow's "L"
// from + f (to - from): f beyond 0 ... 1 goes on past the ends
Color blend(float from, Color to, float f) {
  return {clipped(from + f * (to.r - from)), clipped(from + f * (to.g - from)),
          clipped(from + f * (to.b - from))};
}

// The hue turned by `turn` of the circle; value and saturation stay.
Color turned(Color c, float turn) {
  const float high = std::max({c.r, c.g, c.b}), low = std::min({c.r, c.g, c.b}), range = high - low;
  if (range <= 0) return c;
  float sextant = high == c.r   ? (c.g - c.b) / range
                  : high == c.g ? 2 + (c.b - c.r) / range
                                : 4 + (c.r - c.g) / range;
  sextant += 6 * turn;
  sextant -= 6 * std::floor(sextant / 6);
  // Each channel is high near its own hue, low opposite, and a straight line between.
  auto channel = [&](float own) {
    float distance = std::fabs(sextant - own);
    distance = std::min(distance, 6 - distance);
    return low + range * std::min(1.0f, std::max(0.0f, 2 - distance));
  };
  return {channel(0), channel(2), channel(4)};
}

}  // namespace

void change_colors(Image& image, const ColorChange& change) {
  if (change.count == 0 && !change.gray) return;
  std::vector<Color> colors(image.pixels.size() / 3);
  for (size_t i = 0; i < colors.size(); ++i)
    colors[i] = {static_cast<float>(image.pixels[3 * i]), static_cast<float>(image.pixels[3 * i + 1]),
                 static_cast<float>(image.pixels[3 * i + 2])};
  for (int step = 0; step < change.count; ++step) {
    const auto [kind, factor] = change.steps[step];
    const float f = static_cast<float>(factor);
    double mean = 0;
    if (kind == ColorChange::contrast) {
      for (const Color& c : colors) mean += static_cast<double>(gray_of(c));
      mean /= static_cast<double>(std::max<size_t>(1, colors.size()));
    }
    for (Color& c : colors) switch (kind) {
        case ColorChange::brightness:
          c = blend(0, c, f);
          break;
        case ColorChange::contrast:
          c = blend(static_cast<float>(mean), c, f);
          break;
        case ColorChange::saturation:
          c = blend(gray_of(c), c, f);
          break;
        case ColorChange::hue:
          c = turned(c, f);
          break;
      }
  }
  for (size_t i = 0; i < colors.size(); ++i) {
    const Color c = colors[i];
    const float gray = gray_of(c);
    const float out[3] = {change.gray ? gray : c.r, change.gray ? gray : c.g, change.gray ? gray : c.b};
    for (size_t k = 0; k < 3; ++k)
      image.pixels[3 * i + k] = static_cast<uint8_t>(std::lround(clipped(out[k])));
  }
}

}  // namespace switchback
