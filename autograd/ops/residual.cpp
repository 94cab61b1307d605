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
    tape().record("residual", y, [x, branch, y] {
      Tensor dy = y.take_grad();
      branch.adopt_grad(dy);  // both share dy's memory until one of them adds to it (Variable::grad_sink)
      x.adopt_grad(std::move(dy));
    });
  } else {
    tape().record("residual", y, [&k, x, branch, gamma, y] {
      Tensor dy = y.take_grad();
      k.residual_backward(branch.grad_sink(), gamma.grad_sink(), dy, branch.value(), gamma.value());
      x.adopt_grad(std::move(dy));
    });
  }
  return y;
}

}  // namespace switchback
