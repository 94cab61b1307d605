// augment.cpp: where to cut and what to resize to; the pixels are resize.cpp's work.
#include "data/augment.h"

#include <algorithm>
#include <cstring>

#include "runtime/check.h"

namespace switchback {
namespace {

// Python's round(): to the nearest, to the even one of two (the default rounding mode of nearbyint).
int64_t round_to_even(double value) { return static_cast<int64_t>(std::nearbyint(value)); }

}  // namespace

CropBox crop_try(int64_t height, int64_t width, const CropOptions& options, double area_draw,
                 double ratio_draw) {
  const double area = static_cast<double>(height * width);
  const double target = area * (options.scale[0] + (options.scale[1] - options.scale[0]) * area_draw);
  const double low = std::log(options.ratio[0]), high = std::log(options.ratio[1]);
  const double ratio = std::exp(low + (high - low) * ratio_draw);
  return {0, 0, round_to_even(std::sqrt(target / ratio)), round_to_even(std::sqrt(target * ratio))};
}

CropBox fallback_crop(int64_t height, int64_t width, const CropOptions& options) {
  const double ratio = static_cast<double>(width) / static_cast<double>(height);
  CropBox box{0, 0, height, width};
  if (ratio < options.ratio[0])
    box.height = round_to_even(static_cast<double>(width) / options.ratio[0]);
  else if (ratio > options.ratio[1])
    box.width = round_to_even(static_cast<double>(height) * options.ratio[1]);
  box.top = (height - box.height) / 2;
  box.left = (width - box.width) / 2;
  return box;
}

Interpolation parse_interpolation(std::string_view name) {
  if (name == "bicubic") return Interpolation::bicubic;
  if (name == "bilinear") return Interpolation::bilinear;
  fail("image interpolation '", name, "' is unknown: choose bicubic or bilinear");
}

ResizeMode parse_resize_mode(std::string_view name) {
  if (name == "shortest") return ResizeMode::shortest;
  if (name == "longest") return ResizeMode::longest;
  if (name == "squash") return ResizeMode::squash;
  fail("image resize mode '", name, "' is unknown: choose shortest, longest or squash");
}

ImageSize evaluation_size(int64_t height, int64_t width, int64_t size, ResizeMode mode) {
  const int64_t shorter = std::min(height, width), longer = std::max(height, width);
  if (mode == ResizeMode::squash) return {size, size};
  if (mode == ResizeMode::shortest) {
    // int(size * longer / shorter): Python divides exactly rounded doubles, then truncates.
    const auto other =
        static_cast<int64_t>(static_cast<double>(size * longer) / static_cast<double>(shorter));
    return width <= height ? ImageSize{other, size} : ImageSize{size, other};
  }
  // An edge that would round to nothing (beyond 2 size : 1) keeps one pixel; Pillow raises an error.
  const double shrink = static_cast<double>(longer) / static_cast<double>(size);
  return {std::max<int64_t>(1, round_to_even(static_cast<double>(height) / shrink)),
          std::max<int64_t>(1, round_to_even(static_cast<double>(width) / shrink))};
}

CropBox center_box(int64_t height, int64_t width, int64_t size) {
  // Where the picture is smaller it is padded, the odd pixel going to the right and the bottom.
  const auto offset = [](int64_t have, int64_t want) {
    return have < want ? -((want - have) / 2) : round_to_even(static_cast<double>(have - want) / 2.0);
  };
  return {offset(height, size), offset(width, size), size, size};
}

Image evaluation_transform(const Image& from, int64_t size, ResizeMode mode, Interpolation interpolation) {
  Image to;
  evaluation_transform(to, from, size, mode, interpolation);
  return to;
}

void evaluation_transform(Image& to, const Image& from, int64_t size, ResizeMode mode,
                          Interpolation interpolation) {
  const ImageSize resized = evaluation_size(from.height, from.width, size, mode);
  const CropBox box = center_box(resized.height, resized.width, size), whole{0, 0, from.height, from.width};
  if (resized.height >= size && resized.width >= size)
    return resize_window(to, from, whole, resized.height, resized.width, box, interpolation);
  Image middle;
  const CropBox window{std::max<int64_t>(box.top, 0), std::max<int64_t>(box.left, 0),
                       std::min(resized.height, size), std::min(resized.width, size)};
  resize_window(middle, from, whole, resized.height, resized.width, window, interpolation);
  to = {size, size, std::vector<uint8_t>(static_cast<size_t>(size * size * 3))};
  const int64_t top = std::max<int64_t>(-box.top, 0), left = std::max<int64_t>(-box.left, 0);
  for (int64_t y = 0; y < middle.height; ++y)
    std::memcpy(to.row(top + y) + left * 3, middle.row(y), static_cast<size_t>(middle.width * 3));
}

}  // namespace switchback
