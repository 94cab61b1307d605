// layernorm.h: normalisation over the channels as a layer; epsilon 1e-5 as in CLIP.
#pragma once

#include <string>

#include "autograd/ops.h"
#include "nn/parameter.h"

namespace switchback {

class LayerNorm {
 public:
  LayerNorm(ParameterArena& arena, const std::string& prefix, int64_t width)
      : gain_(arena.add(prefix + ".weight", {width}, Init::ones())),
        bias_(arena.add(prefix + ".bias", {width}, Init::zeros())) {}

  // x (..., width) -> the same shape
  Variable operator()(const Variable& x) const { return layernorm(x, gain_, bias_); }
  // sum = x + gamma branch, and sum normalised; gamma may be absent
  Normed operator()(const Variable& x, const Variable& branch, const Variable& gamma,
                    const RowFormats& formats = {}) const {
    return residual_layernorm(x, branch, gamma, gain_, bias_, 1e-5, formats);
  }

 private:
  Parameter gain_, bias_;
};

}  // namespace switchback
