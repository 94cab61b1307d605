// linear: y = x wᵀ + b, and `project`, the same with the weight stored as (K, N).
#include "autograd/ops/precision.h"

namespace switchback {
namespace {

// A convolution's weight (N, 3, p, p) seen as the matrix (N, 3 p p) that multiplies flattened patches.
template <class AnyView>
AnyView matrix(AnyView view) {
  if (view && view.shape.rank() > 2) view.shape = Shape{view.shape[0], view.shape.size() / view.shape[0]};
  return view;
}
Sink matrix(Sink sink) { return {matrix(sink.to), sink.accumulate}; }

}  // namespace

std::shared_ptr<const PreparedWeight> weight_of(const LinearPrecision& precision, CView w, DType values) {
  if (precision.weight) return precision.weight;
  auto made = std::make_shared<PreparedWeight>(prepared_weight(*precision.recipe, w.shape, values, w.device));
  prepare_weight(*made, *precision.recipe, w);
  return made;
}

// x (..., K), w (N, K), bias (N), y (..., N).
//   dx = dy w, dw = dyᵀ x, dbias = Σ_rows dy, each as the recipe says
Variable linear(const Variable& x, const Variable& w, const Variable& bias,
                const LinearPrecision& precision) {
  const LinearRecipe& recipe = *precision.recipe;
  const auto weight = weight_of(precision, matrix(CView(w.value())), x.dtype());
  Variable y = result_of(Tensor(x.shape().with_cols(w.shape()[0]), x.dtype(), x.device()), x, w, bias);
  SavedInput saved;
  linear_forward(recipe, y.value(), y.needs_grad() ? &saved : nullptr, {x.value(), x.take_codes()},
                 matrix(CView(w.value())), *weight, bias.value());
  y.gradient().sum_rows_into(bias.gradient());
  // x itself is kept where its value is read again: it may have been forgotten until then.
  const Variable kept = saved.value.defined() ? x : Variable();
  tape().record("linear", y, [&recipe, kept, dx = x.gradient(), w, bias, weight, codes = saved.codes,
                              result = y.gradient()] {
    RowOperand dy{.value = {}, .codes = result.take_codes()};
    dy.value = result.take();
    Sink dbias = result.row_sum_written() ? Sink{} : bias.grad_sink(), dw = matrix(w.grad_sink());
    const SavedInput input{kept.value(), codes};
    const bool dw_wanted = bool(dw);
    if (dx.needed()) quantize_gradient(recipe, dy, dw, dbias, input);
    const bool dw_done = dw_wanted && !dw;  // beside the codes
    if (dw_done) Tape::part_done("linear", "weight gradient");
    linear_backward_input(recipe, dx.sink(), dy, matrix(CView(w.value())), *weight);
    Tape::part_done("linear", "input gradient");
    linear_backward_weight(recipe, dw, dbias, dy.value, input);
    if (!dw_done) Tape::part_done("linear", "weight gradient");
  });
  return y;
}

// x (B, C), p (C, E), y (B, E).   dx = dy pᵀ, dp = xᵀ dy
Variable project(const Variable& x, const Variable& p) {
  Kernels& k = kernels(x.device());
  Tensor value(x.shape().with_cols(p.shape()[1]), x.dtype(), x.device());
  k.matmul({value}, x.value(), Transpose::no, p.value(), Transpose::no);
  Variable y = result_of(std::move(value), x, p);
  tape().record("project", y, [&k, x, p, result = y.gradient()] {
    Tensor dy = result.take();
    if (x.needs_grad()) k.matmul(x.grad_sink(), dy, Transpose::no, p.value(), Transpose::yes);
    Tape::part_done("project", "input gradient");
    if (p.needs_grad()) k.matmul(p.grad_sink(), x.value(), Transpose::yes, dy, Transpose::no);
    Tape::part_done("project", "weight gradient");
  });
  return y;
}

}  // namespace switchback
