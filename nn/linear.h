// linear.h: y = x wᵀ + b as a layer. w (out, in), b (out).
#pragma once

#include <string>

#include "autograd/ops.h"
#include "nn/parameter.h"

namespace switchback {

class Linear {
 public:
  struct Names {
    std::string weight, bias;
  };

  Linear(ParameterArena& arena, const Names& names, int64_t in, int64_t out, Init weight, Init bias,
         const LinearRecipe& recipe = standard_recipe())
      : weight_(arena.add(names.weight, {out, in}, weight)),
        bias_(arena.add(names.bias, {out}, bias)),
        precision_{&recipe, arena.prepare(weight_, recipe)} {}

  // x (..., in) -> (..., out)
  Variable operator()(const Variable& x) const { return linear(x, weight_, bias_, precision_); }
  const Parameter& weight() const { return weight_; }
  const Parameter& bias() const { return bias_; }
  const LinearPrecision& precision() const { return precision_; }

 private:
  Parameter weight_, bias_;
  LinearPrecision precision_;
};

}  // namespace switchback
