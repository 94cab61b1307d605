// pool: one row of every sample: the class token (row 0), or the end-of-text token (a given place).
#include "autograd/ops.h"

namespace switchback {

// x (B, T, C), place (B) or undefined -> y (B, C).   dx is dy at that row and 0 elsewhere
Variable pool(const Variable& x, const Tensor& place) {
  Kernels& k = kernels(x.device());
  Tensor value({x.shape()[0], x.shape()[2]}, x.dtype(), x.device());
  k.pool_forward(value, x.value(), place);
  Variable y = result_of(std::move(value), x);
  tape().record("pool", y, [&k, dx = x.gradient(), place, dy = y.gradient()] {
    k.pool_backward(dx.sink(), dy.take(), place);
  });
  return y;
}

}  // namespace switchback
