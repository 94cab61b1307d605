// gelu.cu: the activation of the MLP.
//   exact: y = x Φ(x),         y' = Φ(x) + x φ(x)
//   quick: y = x σ(1.702 x),   y' = σ + 1.702 x σ (1 - σ)
// The backward pass computes Φ anew from x: reading a saved one would cost more than the arithmetic.
// bf16 by gelu.cuh, as everywhere: the same bits as in the epilogue of a product. f32 by math.cuh.
#include "kernels/cuda/gelu_slope.cuh"

namespace switchback::cuda {
namespace {

template <class T>
struct Forward {
  const T* x;
  bool exact;
  __device__ void operator()(float (&y)[elements_of_thread], int64_t i, int64_t valid) const {
    load(y, x + i, valid);
    if constexpr (std::is_same_v<T, bf16>) {
      gelu(y, y, exact);
    } else {
#pragma unroll
      for (float& v : y) v = gelu_of(v, exact);
    }
  }
};

}  // namespace

void CudaKernels::gelu_forward(View y, CView x, Gelu kind) {
  const char* op = "gelu_forward";
  Require::gelu_forward(op, y, x);
  visit(x.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    for_elements(op, out_of<T>(y), x.size(), Forward<T>{data<T>(x), kind == Gelu::exact}, stream_);
  });
}

void CudaKernels::gelu_backward(Sink dx, CView dy, CView x, Gelu kind) {
  if (!dx) return;
  const char* op = "gelu_backward";
  Require::gelu_backward(op, dx, dy, x);
  visit(x.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    visit_sink<T>(dx, op, [&](auto to) {
      const TimesGeluSlope<T, T> f{data<T>(dy), data<T>(x), kind == Gelu::exact};
      for_elements(op, out_of<decltype(to)>(dx), x.size(), f, stream_);
    });
  });
}

}  // namespace switchback::cuda
