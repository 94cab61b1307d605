// resize_passes.h: the two passes of a resize, and their weights. Inside the folder, and for the test that
// holds the fast passes against the plain ones.
#pragma once

#include <cstdint>
#include <vector>

#include "data/resize.h"

namespace switchback {

// The integer weights of a line of `from` pixels resized to `to`, of which the `size` output pixels from
// `begin` on are wanted. The x-th of these reads the source pixels first[x], ..., first[x] + count[x] - 1
// with the weights at weights[x * taps]; the rest up to `taps` are 0.
struct ResizeWeights {
  static constexpr int kFractionBits = 22;  // 32 - 8 for the pixel - 2 for a bicubic's overshoot

  ResizeWeights(int64_t from, int64_t to, int64_t begin, int64_t size, Interpolation interpolation);
  int64_t size() const { return static_cast<int64_t>(first.size()); }
  // One past the last source pixel that is read.
  int64_t end() const { return first.back() + count.back(); }

  int64_t taps = 0;
  std::vector<int32_t> first, count;  // (size)
  std::vector<int32_t> weights;       // (size, taps)
};

// Rows of pixels somewhere in memory, `stride` bytes apart. `end` is one past the last byte that may be read.
struct PixelRows {
  const uint8_t* data;
  int64_t rows, stride;
  const uint8_t* end;
};

// to (rows, weights.size(), 3), dense, from (rows, any width, 3).
void horizontal_pass_plain(uint8_t* to, const PixelRows& from, const ResizeWeights& weights);
void horizontal_pass(uint8_t* to, const PixelRows& from, const ResizeWeights& weights);

// to (weights.size(), row_bytes), dense, from (rows, row_bytes), whose row 0 is the source's first_row.
void vertical_pass_plain(uint8_t* to, const PixelRows& from, int64_t first_row, int64_t row_bytes,
                         const ResizeWeights& weights);
void vertical_pass(uint8_t* to, const PixelRows& from, int64_t first_row, int64_t row_bytes,
                   const ResizeWeights& weights);

}  // namespace switchback
