// l2_normalize: y = x / |x|₂ by rows, from the model's type into the type of the loss (f32).
#include "autograd/ops.h"

namespace switchback {

// x (B, E) -> y (B, E).   dx = (dy - y (y·dy)) / |x|
Variable l2_normalize(const Variable& x) {
  Kernels& k = kernels(x.device());
  Tensor value(x.shape(), statistics_dtype(x.dtype()), x.device());
  Tensor inverse_norm({x.value().rows()}, value.dtype(), x.device());
  k.l2_normalize_forward(value, inverse_norm, x.value());
  Variable y = result_of(std::move(value), x);
  tape().record("l2_normalize", y, [&k, x, y, inverse_norm] {
    Tensor dy = y.take_grad();
    k.l2_normalize_backward(x.grad_sink(), dy, y.value(), inverse_norm);
  });
  return y;
}

}  // namespace switchback
