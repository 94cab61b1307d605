// augment.h: from a decoded picture to the square that the model sees, as open_clip's transforms do it.
//
//   training    RandomResizedCrop(size, scale (0.9, 1), ratio (3/4, 4/3), bicubic): no flip, no colour jitter
//   evaluation  shortest   resize the shorter edge to `size`, then cut the centre
//               longest    resize the longer edge to `size`, then pad with black to a square
//               squash     resize to `size` x `size`
// Results are uint8 (size, size, 3). Mean and deviation are the model's business: its first kernel
// normalises. Python's round() goes to the even neighbour at a half, and so does everything here.
#pragma once

#include <cmath>
#include <cstdint>
#include <string_view>

#include "data/image.h"
#include "data/resize.h"

namespace switchback {

struct CropOptions {
  double scale[2] = {0.9, 1.0};              // part of the area that is kept
  double ratio[2] = {3.0 / 4.0, 4.0 / 3.0};  // width / height before it becomes a square
};

// What RandomResizedCrop takes when chance finds nothing: the largest centred box within the ratios. With at
// least 0.9 of the area to keep, every picture wider than 1.48 or narrower than 0.675 ends here: the common
// case for photographs of 3:2 and 16:9.
CropBox fallback_crop(int64_t height, int64_t width, const CropOptions& options);

// The box of one try, given two random numbers from [0, 1); its top and left are still 0. It may be larger
// than the picture: then the try has failed.
CropBox crop_try(int64_t height, int64_t width, const CropOptions& options, double area_draw,
                 double ratio_draw);

// Ten tries, then the fallback. Random: a generator with
//   double uniform_double()       from [0, 1)
//   uint64_t below(uint64_t n)    from 0, ..., n - 1
template <class Random>
CropBox random_resized_crop(int64_t height, int64_t width, const CropOptions& options, Random& random) {
  for (int attempt = 0; attempt < 10; ++attempt) {
    const double area_draw = random.uniform_double(), ratio_draw = random.uniform_double();
    CropBox box = crop_try(height, width, options, area_draw, ratio_draw);
    if (box.width <= 0 || box.height <= 0 || box.width > width || box.height > height) continue;
    box.top = static_cast<int64_t>(random.below(static_cast<uint64_t>(height - box.height + 1)));
    box.left = static_cast<int64_t>(random.below(static_cast<uint64_t>(width - box.width + 1)));
    return box;
  }
  return fallback_crop(height, width, options);
}

// to (size, size, 3)
template <class Random>
void train_transform(Image& to, const Image& from, int64_t size, const CropOptions& options, Random& random) {
  resize(to, from, random_resized_crop(from.height, from.width, options, random), size, size,
         Interpolation::bicubic);
}

template <class Random>
Image train_transform(const Image& from, int64_t size, const CropOptions& options, Random& random) {
  Image to;
  train_transform(to, from, size, options, random);
  return to;
}

enum class ResizeMode { shortest, longest, squash };

// The names of --image-interpolation and --image-resize-mode; fails on another one and lists these.
Interpolation parse_interpolation(std::string_view name);
ResizeMode parse_resize_mode(std::string_view name);

// The (height, width) that `mode` resizes to before it cuts or pads.
ImageSize evaluation_size(int64_t height, int64_t width, int64_t size, ResizeMode mode);

// The middle (size, size) of a picture; a top or left below 0 is that much padding.
CropBox center_box(int64_t height, int64_t width, int64_t size);

// to (size, size, 3)
void evaluation_transform(Image& to, const Image& from, int64_t size, ResizeMode mode = ResizeMode::shortest,
                          Interpolation interpolation = Interpolation::bicubic);
Image evaluation_transform(const Image& from, int64_t size, ResizeMode mode = ResizeMode::shortest,
                           Interpolation interpolation = Interpolation::bicubic);

}  // namespace switchback
