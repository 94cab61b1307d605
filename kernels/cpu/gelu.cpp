// gelu.cpp: the activation of the MLP.
//   exact: y = x Φ(x),         y' = Φ(x) + x φ(x)
//   quick: y = x σ(1.702 x),   y' = σ + 1.702 x σ (1 - σ)
// The backward pass computes Φ anew from x: saving it would cost as much memory traffic as it saves.
#include "kernels/cpu/access.h"
#include "kernels/cpu/math.h"

namespace switchback {

void CpuKernels::gelu_forward(View y, CView x, Gelu kind) {
  check_vector("gelu_forward", "y", y, x.size(), x.dtype);
  visit_float(x.dtype, "gelu_forward", [&](auto tag) {
    using T = decltype(tag);
    using R = Statistics<T>;
    T* out = y.as<T>();
    const T* in = x.as<T>();
    if (kind == Gelu::exact) {
      for_elements(x.size(), [=](int64_t i) {
        const R value = static_cast<R>(in[i]);
        out[i] = static_cast<T>(value * normal(value).cdf);
      });
    } else {
      for_elements(x.size(), [=](int64_t i) {
        const R value = static_cast<R>(in[i]);
        out[i] = static_cast<T>(value * sigmoid(R(1.702) * value));
      });
    }
  });
}

void CpuKernels::gelu_backward(Sink dx, CView dy, CView x, Gelu kind) {
  if (!dx) return;
  check_vector("gelu_backward", "dy", dy, x.size(), x.dtype);
  check_sink_vector("gelu_backward", "dx", dx, x.size(), x.dtype);
  visit_float(x.dtype, "gelu_backward", [&](auto tag) {
    using T = decltype(tag);
    using R = Statistics<T>;
    const T* in = x.as<T>();
    const T* gradient = dy.as<T>();
    write_to<T>(dx, "gelu_backward", [&](auto out) {
      if (kind == Gelu::exact) {
        for_elements(x.size(), [=](int64_t i) {
          const R value = static_cast<R>(in[i]);
          const Normal<R> n = normal(value);
          out.put(i, static_cast<R>(gradient[i]) * (n.cdf + value * n.density));
        });
      } else {
        for_elements(x.size(), [=](int64_t i) {
          const R value = static_cast<R>(in[i]);
          const R s = sigmoid(R(1.702) * value);
          out.put(i, static_cast<R>(gradient[i]) * (s + R(1.702) * value * s * (R(1) - s)));
        });
      }
    });
  });
}

}  // namespace switchback
