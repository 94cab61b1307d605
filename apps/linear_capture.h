// linear_capture.h: what the linear layers of chosen blocks multiply in one training step.
//
//   y = x wᵀ,  dx = dy w,  dw = dyᵀ x        x (M, K), w (N, K), dy (M, N), M: tokens of the batch
//
// Nothing in the model knows of it: an observer of the tape sees every op's result, so the input of an op is
// the result before it; a mark on the tape is passed when the gradient of that result is complete. Inside an
// MLP u, gelu(u) and du are computed once more.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "nn/parameter.h"

namespace switchback {

struct LinearCapture {
  std::string name;  // visual.transformer.resblocks.1.mlp.c_fc
  Tensor x, w, dy;   // f32, on the host
};

// Runs `step`, a forward and a backward pass, and returns the four linears of each of these blocks
// ("visual.transformer.resblocks.1"), in the order of their gradients. The model must compute whole last
// blocks (ClipConfig::whole_last_block), by the standard recipe and without recomputation.
std::vector<LinearCapture> capture_linears(const ParameterArena& arena,
                                           const std::vector<std::string>& blocks, Gelu gelu,
                                           const std::function<void()>& step);

}  // namespace switchback
