#include "autograd/checkpoint.h"

namespace switchback {

Variable checkpoint(const Variable& x, const std::function<Variable(const Variable&)>& f) {
  if (Tape::paused()) return f(x);
  Tensor value;
  {
    Tape::Pause pause;
    value = f(x).value();
  }
  Variable y(value, true);  // f may use parameters even where x needs no gradient
  tape().record("checkpoint", y, [x, y, f] {
    Tensor dy = y.take_grad();
    Variable again(x.value(), x.needs_grad());
    Tape::Scope scope;
    Tape::Resume resume;
    f(again).adopt_grad(std::move(dy));
    scope.tape().backward_from_gradients();
    if (again.has_grad()) x.adopt_grad(again.take_grad());
  });
  return y;
}

}  // namespace switchback
