#include "autograd/checkpoint.h"

namespace switchback {

Recompute find_recompute(std::string_view name) {
  if (name == "none") return Recompute::none;
  if (name == "gelu") return Recompute::gelu;
  if (name == "cheap") return Recompute::cheap;
  if (name == "blocks") return Recompute::blocks;
  fail("recompute level '", name, "' is not known; there are none, gelu, cheap and blocks");
}

TwoVariables checkpoint(const TwoVariables& x, const std::function<TwoVariables(const TwoVariables&)>& f) {
  if (Tape::paused()) return f(x);
  TwoVariables y;
  {
    Tape::Pause pause;
    y = f(x);
  }
  for (Variable& result : y)  // f may use parameters even where x needs no gradient
    if (result.defined()) result = Variable(result.value(), true);
  tape().record("checkpoint", y[0], y[1], [x, dy = std::array{y[0].gradient(), y[1].gradient()}, f] {
    TwoVariables again;
    for (size_t i = 0; i < 2; ++i) again[i] = Variable(x[i].value(), x[i].needs_grad());
    Tape::Scope scope;
    Tape::Resume resume;
    const TwoVariables result = f(again);
    for (size_t i = 0; i < 2; ++i) dy[i].move_to(result[i].gradient());
    scope.tape().backward_from_gradients();
    for (size_t i = 0; i < 2; ++i)
      if (again[i].has_grad()) x[i].adopt_grad(again[i].take_grad());
  });
  return y;
}

Variable checkpoint(const Variable& x, const std::function<Variable(const Variable&)>& f) {
  return checkpoint({x, {}}, [f](const TwoVariables& z) { return TwoVariables{f(z[0]), {}}; })[0];
}

}  // namespace switchback
