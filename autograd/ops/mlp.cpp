// mlp: y = proj(gelu(fc(x))) as one op: the GELU is made where fc's product is, its gradient where proj's is.
// Saves x, u = fc(x) and g = gelu(u); without keep_gelu, g is made again from u on the way back.
#include "autograd/ops/precision.h"

namespace switchback {
namespace {

// The same by a recipe. The GELU stands between the products then, both ways, and leaves the codes of its
// rows behind where products of codes want them.
Variable mlp_by_recipe(const Variable& x, const Variable& fc_w, const Variable& fc_b, const Variable& proj_w,
                       const Variable& proj_b, Gelu kind, bool keep_gelu, const LinearPrecision& fc,
                       const LinearPrecision& proj) {
  Kernels& k = kernels(x.device());
  const LinearRecipe& recipe = *fc.recipe;
  CHECK(proj.recipe == &recipe, "both linears of an MLP go by one recipe");
  const auto fc_weight = weight_of(fc, fc_w.value(), x.dtype()),
             proj_weight = weight_of(proj, proj_w.value(), x.dtype());
  Variable y = result_of(Tensor(x.shape().with_cols(proj_w.shape()[0]), x.dtype(), x.device()), x, fc_w, fc_b,
                         proj_w, proj_b);
  const bool keep = y.needs_grad();
  SavedInput saved_x, saved_g;
  const auto hidden = [shape = x.shape().with_cols(fc_w.shape()[0])](DType dtype, Device device) {
    return Tensor(shape, dtype, device);
  };
  const auto codes_of = [&, hidden](Format format) {
    const Tensor codes = hidden(code_dtype(format, x.dtype()), x.device());
    return Codes{codes, Tensor({codes.rows()}, DType::f32, x.device()), format};
  };
  Tensor u = hidden(x.dtype(), x.device());
  linear_forward(recipe, u, keep ? &saved_x : nullptr, {x.value(), x.take_codes()}, fc_w.value(), *fc_weight,
                 fc_b.value());
  const Variable kept_x = saved_x.value.defined() ? x : Variable();
  const Format forward = recipe.input_row_codes(), backward = recipe.gradient_row_codes();
  const bool save_g = recipe.saved == LinearRecipe::input && keep_gelu && keep;
  RowOperand g;
  if (forward == Format::none || save_g || recipe.saved == LinearRecipe::input_columns)
    g.value = hidden(x.dtype(), x.device());
  if (forward != Format::none) {
    g.codes = codes_of(forward);
    k.gelu_forward_quantized(g.value, g.codes.codes, g.codes.scale, u, forward, kind);
  } else {
    k.gelu_forward(g.value, u, kind);
  }
  linear_forward(recipe, y.value(), keep ? &saved_g : nullptr, g, proj_w.value(), *proj_weight,
                 proj_b.value());
  if (!save_g) saved_g.value = {};
  g = {};
  y.gradient().sum_rows_into(proj_b.gradient());
  tape().record("mlp", y, [&k, &recipe, fc_w, fc_b, proj_w, proj_b, fc_weight, proj_weight, kind, hidden,
                           backward, u, saved_g, kept_x, x_codes = saved_x.codes, dx = x.gradient(),
                           result = y.gradient(), dtype = x.dtype(), device = x.device()]() mutable {
    RowOperand dy{.value = {}, .codes = result.take_codes()}, du{.value = hidden(dtype, device), .codes = {}};
    dy.value = result.take();
    Sink dproj_b = result.row_sum_written() ? Sink{} : proj_b.grad_sink();
    if (quantize_gradient(recipe, dy, dproj_b)) dproj_b = {};
    linear_backward_input(recipe, {du.value}, dy, proj_w.value(), *proj_weight);  // dg
    Tensor g_again;
    if (recipe.saved == LinearRecipe::input && !saved_g.value.defined())
      saved_g.value = g_again = hidden(dtype, device);
    if (backward != Format::none) {  // du where dg was
      const Tensor codes = hidden(code_dtype(backward, dtype), device);
      du.codes = {codes, Tensor({codes.rows()}, DType::f32, device), backward};
      k.gelu_backward_quantized(du.value, du.codes.codes, du.codes.scale, g_again, du.value, u, backward,
                                kind, fc_b.grad_sink());
    } else {
      if (g_again.defined()) k.gelu_forward(g_again, u, kind);
      k.gelu_backward({du.value}, du.value, u, kind);
    }
    Tape::part_done("mlp", "input gradient");
    linear_backward_weight(recipe, proj_w.grad_sink(), dproj_b, dy.value, saved_g);
    Tape::part_done("mlp", "weight gradient");
    dy = {}, u = g_again = {}, saved_g = {};  // their memory may serve what comes
    linear_backward_input(recipe, dx.sink(), du, fc_w.value(), *fc_weight);
    Tape::part_done("mlp", "input gradient");
    const Sink dfc_b = backward == Format::none ? fc_b.grad_sink() : Sink{};
    linear_backward_weight(recipe, fc_w.grad_sink(), dfc_b, du.value, {kept_x.value(), x_codes});
    Tape::part_done("mlp", "weight gradient");
  });
  return y;
}

}  // namespace

// x (..., C), u, g (..., M), y (..., C); fc_w (M, C), fc_b (M), proj_w (C, M), proj_b (C)
//   du = (dy proj_w) gelu'(u),  dproj_w = dyᵀ g,  dproj_b = Σ_rows dy
//   dx = du fc_w,               dfc_w = duᵀ x,    dfc_b = Σ_rows du
Variable mlp(const Variable& x, const Variable& fc_w, const Variable& fc_b, const Variable& proj_w,
             const Variable& proj_b, Gelu kind, bool keep_gelu, const LinearPrecision& fc,
             const LinearPrecision& proj) {
  if (!fc.recipe->is_standard())
    return mlp_by_recipe(x, fc_w, fc_b, proj_w, proj_b, kind, keep_gelu, fc, proj);
  Kernels& k = kernels(x.device());
  Tensor value(x.shape().with_cols(proj_w.shape()[0]), x.dtype(), x.device());
  Variable y = result_of(std::move(value), x, fc_w, fc_b, proj_w, proj_b);
  Tensor g(x.shape().with_cols(fc_w.shape()[0]), x.dtype(), x.device()), u;
  if (y.needs_grad()) u = Tensor(g.shape(), g.dtype(), g.device());
  k.linear_gelu_forward(g, u, x.value(), fc_w.value(), fc_b.value(), kind);
  k.linear_forward(y.value(), g, proj_w.value(), proj_b.value());
  if (!keep_gelu) g = {};
  y.gradient().sum_rows_into(proj_b.gradient());
  tape().record("mlp", y, [&k, x, fc_w, fc_b, proj_w, proj_b, kind, u, g, y = y.gradient()]() mutable {
    Tensor dy = y.take(), du(u.shape(), u.dtype(), u.device()), g_again;
    if (!g.defined()) g = g_again = Tensor(u.shape(), u.dtype(), u.device());
    k.linear_gelu_backward_input({du}, g_again, dy, proj_w.value(), u, kind);
    Tape::part_done("mlp", "input gradient");
    const Sink dproj_b = y.row_sum_written() ? Sink{} : proj_b.grad_sink();
    k.linear_backward_weight(proj_w.grad_sink(), dproj_b, dy, g);
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
