// layernorm: y = gain x̂ + bias, x̂ = (x - mean) rstd over the last size. Saves x and two numbers a row.
#include "autograd/ops.h"

namespace switchback {

// x, y (..., C), gain, bias (C); mean, rstd (rows)
Variable layernorm(const Variable& x, const Variable& gain, const Variable& bias, double epsilon) {
  Kernels& k = kernels(x.device());
  Tensor value(x.shape(), x.dtype(), x.device());
  Tensor mean({x.value().rows()}, statistics_dtype(x.dtype()), x.device());
  Tensor rstd(mean.shape(), mean.dtype(), mean.device());
  k.layernorm_forward(value, mean, rstd, x.value(), gain.value(), bias.value(), epsilon);
  Variable y = result_of(std::move(value), x, gain, bias);
  tape().record("layernorm", y, [&k, x, gain, bias, y, mean, rstd] {
    Tensor dy = y.take_grad();
    k.layernorm_backward(x.grad_sink(), gain.grad_sink(), bias.grad_sink(), dy, x.value(), mean, rstd,
                         gain.value());
  });
  return y;
}

}  // namespace switchback
