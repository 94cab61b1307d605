// gelu: y = x Φ(x) (exact) or x σ(1.702 x) (quick). Saves x.
#include "autograd/ops.h"

namespace switchback {

Variable gelu(const Variable& x, Gelu kind) {
  Kernels& k = kernels(x.device());
  Tensor value(x.shape(), x.dtype(), x.device());
  k.gelu_forward(value, x.value(), kind);
  Variable y = result_of(std::move(value), x);
  tape().record("gelu", y, [&k, x, dy = y.gradient(), kind] {
    k.gelu_backward(x.grad_sink(), dy.take(), x.value(), kind);
  });
  return y;
}

}  // namespace switchback
