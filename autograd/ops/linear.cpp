// linear: y = x wᵀ + b, and `project`, the same with the weight stored as (K, N).
#include "autograd/ops.h"

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

// x (..., K), w (N, K), bias (N), y (..., N).   dx = dy w, dw = dyᵀ x, dbias = Σ_rows dy
Variable linear(const Variable& x, const Variable& w, const Variable& bias) {
  Kernels& k = kernels(x.device());
  Tensor value(x.shape().with_cols(w.shape()[0]), x.dtype(), x.device());
  k.linear_forward(value, x.value(), matrix(CView(w.value())), bias.value());
  Variable y = result_of(std::move(value), x, w, bias);
  tape().record("linear", y, [&k, x, w, bias, result = y.gradient()] {
    Tensor dy = result.take();
    if (x.needs_grad()) k.linear_backward_input(x.grad_sink(), dy, matrix(CView(w.value())));
    Tape::part_done("linear", "input gradient");
    k.linear_backward_weight(matrix(w.grad_sink()), bias.grad_sink(), dy, x.value());
    Tape::part_done("linear", "weight gradient");
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
