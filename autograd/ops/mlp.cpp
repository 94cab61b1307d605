// mlp: y = proj(gelu(fc(x))) as one op: the GELU is made where fc's product is, and its gradient where proj's is.
// Saves x, u = fc(x) and g = gelu(u); without keep_gelu, g is made again from u on the way back.
#include "autograd/ops.h"

namespace switchback {

// x (..., C), u, g (..., M), y (..., C); fc_w (M, C), fc_b (M), proj_w (C, M), proj_b (C)
//   du = (dy proj_w) gelu'(u),  dproj_w = dyᵀ g,  dproj_b = Σ_rows dy,  dx = du fc_w,  dfc_w = duᵀ x,  dfc_b = Σ_rows du
Variable mlp(const Variable& x, const Variable& fc_w, const Variable& fc_b, const Variable& proj_w,
             const Variable& proj_b, Gelu kind, bool keep_gelu) {
  Kernels& k = kernels(x.device());
  Tensor value(x.shape().with_cols(proj_w.shape()[0]), x.dtype(), x.device());
  Variable y = result_of(std::move(value), x, fc_w, fc_b, proj_w, proj_b);
  Tensor g(x.shape().with_cols(fc_w.shape()[0]), x.dtype(), x.device()), u;
  if (y.needs_grad()) u = Tensor(g.shape(), g.dtype(), g.device());
  k.linear_gelu_forward(g, u, x.value(), fc_w.value(), fc_b.value(), kind);
  k.linear_forward(y.value(), g, proj_w.value(), proj_b.value());
  if (!keep_gelu) g = {};
  tape().record("mlp", y, [&k, x, fc_w, fc_b, proj_w, proj_b, kind, u, g, y = y.gradient()]() mutable {
    Tensor dy = y.take(), du(u.shape(), u.dtype(), u.device()), g_again;
    if (!g.defined()) g = g_again = Tensor(u.shape(), u.dtype(), u.device());
    k.linear_gelu_backward_input({du}, g_again, dy, proj_w.value(), u, kind);
    Tape::part_done("mlp", "input gradient");
    k.linear_backward_weight(proj_w.grad_sink(), proj_b.grad_sink(), dy, g);
    Tape::part_done("mlp", "weight gradient");
    dy = u = g = g_again = {};  // their memory may serve what comes
    if (x.needs_grad()) k.linear_backward_input(x.grad_sink(), du, fc_w.value());
    Tape::part_done("mlp", "input gradient");
    k.linear_backward_weight(fc_w.grad_sink(), fc_b.grad_sink(), du, x.value());
    Tape::part_done("mlp", "weight gradient");
  });
  return y;
}

}  // namespace switchback
