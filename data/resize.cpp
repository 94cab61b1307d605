// resize.cpp: the weights, the plain passes that define the result, and the order of the passes.
#include "data/resize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "data/resize_passes.h"
#include "runtime/check.h"

namespace switchback {
namespace {

// In this order of operations: a weight next to a rounding boundary must fall to Pillow's side of it.
double bicubic(double t) {
  t = std::abs(t);
  if (t < 1.0) return (1.5 * t - 2.5) * t * t + 1.0;
  if (t < 2.0) return (((t - 5.0) * t + 8.0) * t - 4.0) * -0.5;
  return 0.0;
}

double bilinear(double t) {
  t = std::abs(t);
  return t < 1.0 ? 1.0 - t : 0.0;
}

uint8_t round_and_clip(int32_t sum) {
  const int32_t value = sum >> ResizeWeights::kFractionBits;
  return static_cast<uint8_t>(std::clamp(value, 0, 255));
}

constexpr int32_t kHalf = 1 << (ResizeWeights::kFractionBits - 1);

void check_inside(const char* name, const CropBox& box, int64_t height, int64_t width) {
  CHECK(box.height > 0 && box.width > 0 && box.top >= 0 && box.left >= 0 && box.top + box.height <= height &&
            box.left + box.width <= width,
        "resize: a ", name, " of ", box.width, " x ", box.height, " at (", box.left, ", ", box.top, ") of ",
        width, " x ", height);
}

using HorizontalPass = decltype(&horizontal_pass);
using VerticalPass = decltype(&vertical_pass);

void resize_with(HorizontalPass horizontal, VerticalPass vertical, Image& to, const Image& from,
                 const CropBox& box, int64_t height, int64_t width, const CropBox& window,
                 Interpolation interpolation) {
  CHECK(&to != &from, "resize: the result may not be the source");
  CHECK(height > 0 && width > 0, "resize: a new size of ", width, " x ", height);
  check_inside("box", box, from.height, from.width);
  check_inside("window", window, height, width);
  to.height = window.height;
  to.width = window.width;
  to.pixels.resize(static_cast<size_t>(window.height * window.width * 3));

  PixelRows source{from.row(box.top) + box.left * 3, box.height, from.width * 3,
                   from.pixels.data() + from.pixels.size()};
  // An axis that keeps its length is not filtered (the weights would be 1), only cut.
  const bool across = box.width != width, down = box.height != height;
  if (!across) source.data += window.left * 3;
  if (!down) {
    source.data += window.top * source.stride;
    source.rows = window.height;
  }
  const int64_t row_bytes = window.width * 3;
  if (!across && !down) {
    for (int64_t y = 0; y < window.height; ++y)
      std::memcpy(to.row(y), source.data + y * source.stride, static_cast<size_t>(row_bytes));
    return;
  }
  const auto columns = [&] {
    return ResizeWeights(box.width, width, window.left, window.width, interpolation);
  };
  if (!down) return horizontal(to.pixels.data(), source, columns());

  const ResizeWeights rows(box.height, height, window.top, window.height, interpolation);
  const int64_t first_row = rows.first.front();
  source.data += first_row * source.stride;
  source.rows = rows.end() - first_row;
  if (!across) return vertical(to.pixels.data(), source, first_row, row_bytes, rows);

  // The rows in between live as long as the thread: the system clears fresh pages one by one.
  thread_local std::vector<uint8_t> between;  // (source.rows, window.width, 3)
  between.resize(std::max(between.size(), static_cast<size_t>(source.rows * row_bytes)));
  horizontal(between.data(), source, columns());
  vertical(to.pixels.data(), {between.data(), source.rows, row_bytes, between.data() + between.size()},
           first_row, row_bytes, rows);
}

}  // namespace

ResizeWeights::ResizeWeights(int64_t from, int64_t to, int64_t first_wanted, int64_t size,
                             Interpolation interpolation) {
  const bool cubic = interpolation == Interpolation::bicubic;
  const double scale = static_cast<double>(from) / static_cast<double>(to), stretch = std::max(scale, 1.0);
  const double support = (cubic ? 2.0 : 1.0) * stretch, per_stretch = 1.0 / stretch;
  taps = static_cast<int64_t>(std::ceil(support)) * 2 + 1;
  first.resize(static_cast<size_t>(size));
  count.resize(static_cast<size_t>(size));
  weights.assign(static_cast<size_t>(size * taps), 0);
  std::vector<double> line(static_cast<size_t>(taps));
  for (int64_t x = 0; x < size; ++x) {
    const double centre = (static_cast<double>(first_wanted + x) + 0.5) * scale;
    const auto begin = std::max(static_cast<int64_t>(centre - support + 0.5), int64_t{0});
    const auto end = std::min(static_cast<int64_t>(centre + support + 0.5), from);
    double sum = 0.0;
    for (int64_t i = begin; i < end; ++i) {
      const double t = (static_cast<double>(i) - centre + 0.5) * per_stretch;
      sum += line[static_cast<size_t>(i - begin)] = cubic ? bicubic(t) : bilinear(t);
    }
    first[static_cast<size_t>(x)] = static_cast<int32_t>(begin);
    count[static_cast<size_t>(x)] = static_cast<int32_t>(end - begin);
    for (int64_t i = 0; i < end - begin; ++i) {
      const double weight = line[static_cast<size_t>(i)] / (sum != 0.0 ? sum : 1.0) * (1 << kFractionBits);
      weights[static_cast<size_t>(x * taps + i)] =
          static_cast<int32_t>(weight < 0.0 ? weight - 0.5 : weight + 0.5);
    }
  }
}

void horizontal_pass_plain(uint8_t* to, const PixelRows& from, const ResizeWeights& weights) {
  const int64_t width = weights.size();
  for (int64_t y = 0; y < from.rows; ++y)
    for (int64_t x = 0; x < width; ++x) {
      const int32_t* weight = weights.weights.data() + x * weights.taps;
      const uint8_t* pixel = from.data + y * from.stride + weights.first[static_cast<size_t>(x)] * 3;
      for (int64_t c = 0; c < 3; ++c) {
        int32_t sum = kHalf;
        for (int64_t i = 0; i < weights.count[static_cast<size_t>(x)]; ++i)
          sum += weight[i] * pixel[3 * i + c];
        to[(y * width + x) * 3 + c] = round_and_clip(sum);
      }
    }
}

void vertical_pass_plain(uint8_t* to, const PixelRows& from, int64_t first_row, int64_t row_bytes,
                         const ResizeWeights& weights) {
  for (int64_t y = 0; y < weights.size(); ++y) {
    const int32_t* weight = weights.weights.data() + y * weights.taps;
    const uint8_t* rows = from.data + (weights.first[static_cast<size_t>(y)] - first_row) * from.stride;
    for (int64_t x = 0; x < row_bytes; ++x) {
      int32_t sum = kHalf;
      for (int64_t i = 0; i < weights.count[static_cast<size_t>(y)]; ++i)
        sum += weight[i] * rows[i * from.stride + x];
      to[y * row_bytes + x] = round_and_clip(sum);
    }
  }
}

void resize_window(Image& to, const Image& from, const CropBox& box, int64_t height, int64_t width,
                   const CropBox& window, Interpolation interpolation) {
  resize_with(horizontal_pass, vertical_pass, to, from, box, height, width, window, interpolation);
}

void resize(Image& to, const Image& from, const CropBox& box, int64_t height, int64_t width,
            Interpolation interpolation) {
  resize_window(to, from, box, height, width, {0, 0, height, width}, interpolation);
}

Image resize(const Image& from, int64_t height, int64_t width, Interpolation interpolation) {
  Image to;
  resize(to, from, {0, 0, from.height, from.width}, height, width, interpolation);
  return to;
}

Image resize_by_definition(const Image& from, const CropBox& box, int64_t height, int64_t width,
                           Interpolation interpolation) {
  Image to;
  resize_with(horizontal_pass_plain, vertical_pass_plain, to, from, box, height, width, {0, 0, height, width},
              interpolation);
  return to;
}

}  // namespace switchback
