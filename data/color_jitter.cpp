#include "data/color_jitter.h"

#include <cmath>

namespace switchback {
namespace {

float clipped(float x) { return std::min(255.0f, std::max(0.0f, x)); }
float gray_of(float r, float g, float b) { return 0.299f * r + 0.587f * g + 0.114f * b; }  // as Pillow's "L"
// from + f (to - from): f beyond 0 ... 1 goes on past the ends
float blend(float from, float to, float f) { return clipped(from + f * (to - from)); }

// A picture's channels one after the other, so that loops over pixels become vector instructions.
struct Planes {
  size_t count;
  std::vector<float> memory;
  float *r, *g, *b;

  explicit Planes(const Image& image) : count(image.pixels.size() / 3), memory(3 * count) {
    r = memory.data(), g = r + count, b = g + count;
    for (size_t i = 0; i < count; ++i) {
      r[i] = image.pixels[3 * i];
      g[i] = image.pixels[3 * i + 1];
      b[i] = image.pixels[3 * i + 2];
    }
  }
  void store(Image& image) const {
    for (size_t i = 0; i < count; ++i) {
      image.pixels[3 * i] = static_cast<uint8_t>(r[i] + 0.5f);
      image.pixels[3 * i + 1] = static_cast<uint8_t>(g[i] + 0.5f);
      image.pixels[3 * i + 2] = static_cast<uint8_t>(b[i] + 0.5f);
    }
  }

  // Every channel of every pixel blended with from(r, g, b).
  template <class From>
  void blend_with(float factor, From from) {
    for (size_t i = 0; i < count; ++i) {
      const float start = from(r[i], g[i], b[i]);
      r[i] = blend(start, r[i], factor);
      g[i] = blend(start, g[i], factor);
      b[i] = blend(start, b[i], factor);
    }
  }
  float mean_gray() const {
    double sum = 0;
    for (size_t i = 0; i < count; ++i) sum += static_cast<double>(gray_of(r[i], g[i], b[i]));
    return static_cast<float>(sum / static_cast<double>(std::max<size_t>(1, count)));
  }

  // The hue turned by `turn` of the circle; the largest and the smallest channel keep their values. Each
  // channel is high near its own hue (0, 2, 4 of 6), low opposite, and a straight line between.
  void turn_hue(float turn) {
    for (size_t i = 0; i < count; ++i) {
      const float red = r[i], green = g[i], blue = b[i];
      const float high = std::max(red, std::max(green, blue)), low = std::min(red, std::min(green, blue));
      const float range = high - low, scale = 1 / (range > 0 ? range : 1);
      float hue = high == red     ? (green - blue) * scale
                  : high == green ? 2 + (blue - red) * scale
                                  : 4 + (red - green) * scale;
      hue += 6 * turn + 12;  // now in 8 ... 20
      auto channel = [&](float own) {
        float distance = hue - own;
        distance -= 6 * static_cast<float>(static_cast<int>(distance * (1.0f / 6)));
        distance = std::min(distance, 6 - distance);
        return low + range * std::min(1.0f, std::max(0.0f, 2 - distance));
      };
      r[i] = channel(0);
      g[i] = channel(2);
      b[i] = channel(4);
    }
  }
};

}  // namespace

void change_colors(Image& image, const ColorChange& change) {
  if (change.count == 0 && !change.gray) return;
  Planes planes(image);
  for (int step = 0; step < change.count; ++step) {
    const float factor = static_cast<float>(change.steps[step].second);
    switch (change.steps[step].first) {
      case ColorChange::brightness:
        planes.blend_with(factor, [](float, float, float) { return 0.0f; });
        break;
      case ColorChange::contrast:
        planes.blend_with(factor, [mean = planes.mean_gray()](float, float, float) { return mean; });
        break;
      case ColorChange::saturation:
        planes.blend_with(factor, gray_of);
        break;
      case ColorChange::hue:
        planes.turn_hue(factor);
        break;
    }
  }
  if (change.gray) planes.blend_with(0, gray_of);
  planes.store(image);
}

}  // namespace switchback
