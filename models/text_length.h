// text_length.h: the text tower stops behind the longest caption of a batch.
//
// A caption is read at its end-of-text token, the largest id of its row, and attention is causal: what stands
// behind that place reaches neither the features nor, on the way back, any gradient (the positions behind get
// 0). So the first L of T columns give the features and gradients of all T, to rounding: sums over rows are
// shorter, and other kernels may serve.
//
//   tokens (B, T)    L = max_b (place of row b's end-of-text) + 1, rounded up
//
// Lengths are rounded up so that they are few: a GPU plans its products and captures its step for each.
#pragma once

#include <cstdint>

#include "models/config.h"
#include "runtime/tensor.h"

namespace switchback {

// Whether this model may stop early at all. False where it is not wanted (whole_text), and where tokens share
// a scale in low precision (fp8-sim, llm-int8, fp8): there even what nobody reads rounds its neighbours. All
// models here are causal and read the end-of-text token; parse_model_config refuses others.
bool text_may_stop(const ClipConfig& config);

// How many of the columns of tokens (B, T) i32, in host memory, must be computed: T, or a multiple of 8 (of
// 16, 24, ... for T above 80, so that there are at most ten lengths).
int64_t text_length(const Tensor& tokens);

// to (B, L) = the first columns of from (B, T), both i32 in host memory
void copy_columns(const Tensor& to, const Tensor& from);

}  // namespace switchback
