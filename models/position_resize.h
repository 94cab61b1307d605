// position_resize.h: learned position embeddings for another image size or text length than they were learned
// for, as open_clip and transformers resize them with PyTorch.
//
//   image  (1 + g², C) -> (1 + m², C): the class token's row stays; the others, as a picture (g, g, C), are
//   resized
//          with the bicubic filter a = -1/2 that is stretched when the picture shrinks (antialias=True,
//          align_corners=False): the formula of data/resize.h in floating point, without rounding between
//          passes
//   text   (T, C) -> (U, C): linear between neighbours, ends repeated (align_corners=False)
#pragma once

#include <cstdint>
#include <vector>

namespace switchback {

// from (old_grid² , C) row by row -> (new_grid², C)
std::vector<float> resize_grid(const std::vector<float>& from, int64_t old_grid, int64_t new_grid,
                               int64_t width);

// from (old_length, C) -> (new_length, C)
std::vector<float> resize_line(const std::vector<float>& from, int64_t old_length, int64_t new_length,
                               int64_t width);

}  // namespace switchback
