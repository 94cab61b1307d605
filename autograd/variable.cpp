#include "autograd/variable.h"

#include <utility>

#include "kernels/kernels.h"

namespace switchback {

Variable::Variable(Tensor value, bool needs_grad) : node_(std::make_shared<Node>()) {
  node_->value = std::move(value);
  node_->needs_grad = needs_grad;
}

const Tensor& Variable::value() const {
  static const Tensor absent;
  return node_ ? node_->value : absent;
}

Sink Variable::grad_sink() const {
  if (!needs_grad()) return {};
  Node& n = *node_;
  if (!n.grad.defined()) n.grad = Tensor(n.value.shape(), n.value.dtype(), n.value.device());
  const bool add = std::exchange(n.grad_written, true);
  if (add && !n.grad_is_fixed && n.grad.is_shared()) {  // an adopted gradient that somebody else still reads
    Tensor own(n.grad.shape(), n.grad.dtype(), n.grad.device());
    kernels(own.device()).cast(own, n.grad);
    n.grad = std::move(own);
  }
  return {n.grad, add};
}

Tensor Variable::take_grad() const {
  CHECK(has_grad() && !node_->grad_is_fixed, "no gradient to take");
  node_->grad_written = false;
  return std::exchange(node_->grad, {});
}

void Variable::adopt_grad(Tensor grad) const {
  if (!needs_grad()) return;
  Node& n = *node_;
  CHECK(grad.shape() == n.value.shape(), "gradient ", grad.shape(), " for a value ", n.value.shape());
  if (!n.grad_written && !n.grad_is_fixed) {
    n.grad = std::move(grad);
    n.grad_written = true;
  } else {
    kernels(grad.device()).accumulate(grad_sink(), grad);
  }
}

}  // namespace switchback
