// color_jitter.h: other colours for a training picture, as torchvision's ColorJitter and RandomGrayscale make
// them (open_clip: --aug-cfg color_jitter=(b,c,s,h) color_jitter_prob=p gray_scale_prob=p).
//
//   brightness  x f                                      f from [1 - b, 1 + b], not below 0
//   contrast    m + f (x - m), m the picture's mean grey f from [1 - c, 1 + c]
//   saturation  g + f (x - g), g the pixel's grey        f from [1 - s, 1 + s]
//   hue         turned by f of the whole circle          f from [-h, h]
//
// The four come in random order. Values are clipped to a byte's range after each, like Pillow's, but rounded
// only once at the end.
#pragma once

#include <algorithm>
#include <array>
#include <utility>

#include "data/image.h"

namespace switchback {

struct ColorJitter {
  double brightness = 0, contrast = 0, saturation = 0, hue = 0;
  double probability = 0.8;  // of the four above, when any is set
  double gray_probability = 0;

  bool any() const { return brightness > 0 || contrast > 0 || saturation > 0 || hue > 0; }
};

// One picture's draw.
struct ColorChange {
  enum Kind { brightness, contrast, saturation, hue };
  std::array<std::pair<Kind, double>, 4> steps{};  // of which `count`, in order: what and by which factor
  int count = 0;
  bool gray = false;
};

void change_colors(Image& image, const ColorChange& change);

// Random: as in augment.h. Nothing is drawn for what is switched off.
template <class Random>
ColorChange draw_colors(const ColorJitter& options, Random& random) {
  ColorChange change;
  auto between = [&](double low, double high) { return low + (high - low) * random.uniform_double(); };
  auto add = [&](ColorChange::Kind kind, double strength) {
    if (strength > 0)
      change.steps[change.count++] = {kind, between(std::max(0.0, 1 - strength), 1 + strength)};
  };
  if (options.any() && random.uniform_double() < options.probability) {
    add(ColorChange::brightness, options.brightness);
    add(ColorChange::contrast, options.contrast);
    add(ColorChange::saturation, options.saturation);
    if (options.hue > 0)
      change.steps[change.count++] = {ColorChange::hue, between(-options.hue, options.hue)};
    for (int i = change.count - 1; i > 0; --i)
      std::swap(change.steps[i], change.steps[random.below(static_cast<uint64_t>(i + 1))]);
  }
  if (options.gray_probability > 0) change.gray = random.uniform_double() < options.gray_probability;
  return change;
}

}  // namespace switchback
