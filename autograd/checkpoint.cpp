#include "autograd/checkpoint.h"

#include <charconv>

namespace switchback {

Recomputation find_recompute(std::string_view text) {
  const std::string_view name = text.substr(0, text.find(':'));
  Recomputation found;
  if (name == "gelu")
    found = Recompute::gelu;
  else if (name == "cheap")
    found = Recompute::cheap;
  else if (name == "blocks")
    found = Recompute::blocks;
  else if (name != "none")
    fail("--recompute ", text, ": there is no level '", name, "'; there are none, gelu, cheap and blocks");
  if (name.size() == text.size()) return found;
  const std::string_view count = text.substr(name.size() + 1);
  const auto [end, error] = std::from_chars(count.begin(), count.end(), found.blocks);
  if (error != std::errc() || end != count.end() || found.blocks < 0)
    fail("--recompute ", text, ": after the colon stands a number of blocks, as in ", name, ":8");
  return found;
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
