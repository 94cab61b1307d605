// precision.h: the weight that a recipe has prepared for an op, or one that is made now.
#pragma once

#include "autograd/ops.h"

namespace switchback {

// w (N, K); values: the type of what it is multiplied with
std::shared_ptr<const PreparedWeight> weight_of(const LinearPrecision& precision, CView w, DType values);

}  // namespace switchback
