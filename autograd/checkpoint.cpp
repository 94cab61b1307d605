#include "autograd/checkpoint.h"

namespace switchback {

Recompute find_recompute(std::string_view name) {
  if (name == "none") return Recompute::none;
  if (name == "gelu") return Recompute::gelu;
  if (name == "cheap") return Recompute::cheap;
  if (name == "blocks") return Recompute::blocks;
  fail("recompute level '", name, "' is not known; there are none, gelu, cheap and blocks");
}

Variable checkpoint(const Variable& x, const std::function<Variable(const Variable&)>& f) {
  if (Tape::paused()) return f(x);
  Tensor value;
  {
    Tape::Pause pause;
    value = f(x).value();
  }
  Variable y(value, true);  // f may use parameters even where x needs no gradient
  tape().record("checkpoint", y, [x, result = y.gradient(), f] {
    Tensor dy = result.take();
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
