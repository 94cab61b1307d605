// residual: y = x + gamma branch. The gradient of x is the gradient of y: it is moved, never copied.
#include "autograd/ops.h"

namespace switchback {

// x, branch, y (..., C), gamma (C) or absent.   dx = dy, dbranch = gamma dy, dgamma = Σ_rows dy branch
Variable residual(const Variable& x, const Variable& branch, const Variable& gamma) {
  Kernels& k = kernels(x.device());
  Tensor value(x.shape(), x.dtype(), x.device());
  k.residual_forward(value, x.value(), branch.value(), gamma.value());
  Variable y = result_of(std::move(value), x, branch, gamma);
  if (!gamma.defined()) {
    tape().record("residual", y, [x = x.gradient(), branch = branch.gradient(), y = y.gradient()] {
      Tensor dy = y.take();
      branch.adopt(dy);  // both share dy's memory until one of them adds to it (Gradient::sink)
      x.adopt(std::move(dy));
    });
  } else {
    tape().record("residual", y, [&k, x = x.gradient(), branch, gamma, y = y.gradient()] {
      Tensor dy = y.take();
      k.residual_backward(branch.grad_sink(), gamma.grad_sink(), dy, branch.value(), gamma.value());
      x.adopt(std::move(dy));
    });
  }
  return y;
}

}  // namespace switchback
