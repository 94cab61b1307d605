// gelu.cpp: the activation of the MLP.
//   exact: y = x Φ(x),         y' = Φ(x) + x φ(x)
//   quick: y = x σ(1.702 x),   y' = σ + 1.702 x σ (1 - σ)
// The backward pass computes Φ anew from x: saving it would cost as much memory traffic as it saves.
// The same in one op with the linear before it: composed here, one product with an epilogue on a GPU.
#include "kernels/cpu/access.h"
#include "kernels/cpu/math.h"

namespace switchback {

namespace {
// f(std::true_type or std::false_type): whether `kind` is exact, settled outside the loops.
template <class F>
void visit_kind(Gelu kind, F&& f) {
  if (kind == Gelu::exact)
    f(std::true_type{});
  else
    f(std::false_type{});
}
}  // namespace

void CpuKernels::gelu_forward(View y, CView x, Gelu kind) {
  const char* op = "gelu_forward";
  Require::gelu_forward(op, y, x);
  visit_float(x.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    using R = Statistics<T>;
    T* out = y.as<T>();
    const T* in = x.as<T>();
    visit_kind(kind, [=, &x](auto exact) {
      for_elements(x.size(),
                   [=](int64_t i) { out[i] = static_cast<T>(gelu_of<exact.value>(static_cast<R>(in[i]))); });
    });
  });
}

void CpuKernels::gelu_backward(Sink dx, CView dy, CView x, Gelu kind) {
  if (!dx) return;
  const char* op = "gelu_backward";
  Require::gelu_backward(op, dx, dy, x);
  visit_float(x.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    using R = Statistics<T>;
    const T* in = x.as<T>();
    const T* gradient = dy.as<T>();
    write_to<T>(dx, op, [&](auto out) {
      visit_kind(kind, [=, &x](auto exact) {
        for_elements(x.size(), [=](int64_t i) {
          out.put(i, static_cast<R>(gradient[i]) * gelu_slope<exact.value>(static_cast<R>(in[i])));
        });
      });
    });
  });
}

// ---- with the linear before it ----------------------------------------------------------------------------

void CpuKernels::linear_gelu_forward(View y, View preactivation, CView x, CView w, CView bias, Gelu kind) {
  const char* op = "linear_gelu_forward";
  Require::linear_gelu_forward(op, y, preactivation, x, w, bias);
  const View u = preactivation ? preactivation : y;
  linear_forward(u, x, w, bias);
  gelu_forward(y, u, kind);
}

void CpuKernels::linear_gelu_backward_input(Sink dpreactivation, View y, CView dy, CView w,
                                            CView preactivation, Gelu kind) {
  const char* op = "linear_gelu_backward_input";
  const auto [rows, width] =
      Require::linear_gelu_backward_input(op, dpreactivation, y, dy, w, preactivation);
  if (y) gelu_forward(y, preactivation, kind);
  if (!dpreactivation) return;
  visit_float(dy.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    using R = Statistics<T>;
    // dy w in R: in the sink itself where it can stand there.
    View product = dpreactivation.to;
    Tensor copy;
    if (dpreactivation.accumulate || product.dtype != dtype_of<R>)
      product = copy = Tensor({rows, width}, dtype_of<R>);
    linear_backward_input({product}, dy, w);
    const R* dg = product.as<R>();
    const T* u = preactivation.as<T>();
    write_to<T>(dpreactivation, op, [&](auto out) {
      visit_kind(kind, [=](auto exact) {
        for_elements(rows * width,
                     [=](int64_t i) { out.put(i, dg[i] * gelu_slope<exact.value>(static_cast<R>(u[i]))); });
      });
    });
  });
}

// One after the other: what the codes are those of.
void CpuKernels::gelu_forward_quantized(View y, View codes, View scale, CView x, Format format, Gelu kind) {
  Tensor own;
  if (!y) y = own = Tensor(x.shape, x.dtype);
  gelu_forward(y, x, kind);
  quantize(codes, {}, scale, y, {}, format, Granularity::row);
}

void CpuKernels::gelu_backward_quantized(View dx, View codes, View scale, View y, CView dy, CView x,
                                         Format format, Gelu kind, Sink sums) {
  if (y) gelu_forward(y, x, kind);
  gelu_backward({dx}, dy, x, kind);
  quantize(codes, {}, scale, dx, {}, format, Granularity::row, sums);
}

}  // namespace switchback
