// linear_gelu.cu: the MLP's two products with the GELU between them.
//   u = x wᵀ + bias (rounded to T),  y = gelu(u);   backward: dpreactivation = (dy w) gelu'(u),  y = gelu(u)
// x (M, K), w (N, K), u, y (M, N);  backward: dy (M, N), w (N, K), u, dpreactivation, y (M, K).
//
// bf16 on Hopper: one kernel each, with the GELU in the product's epilogue (gemm_bf16.cuh). Else composed:
// the product, then one sweep over its result.
#include "kernels/cuda/gelu_slope.cuh"
#include "kernels/cuda/gemm_bf16.cuh"
#include "kernels/cuda/gemm_plan.h"

namespace switchback::cuda {
void CudaKernels::linear_gelu_forward(View y, View preactivation, CView x, CView w, CView bias, Gelu kind) {
  const char* op = "linear_gelu_forward";
  const auto [rows, width] = Require::linear_gelu_forward(op, y, preactivation, x, w, bias);
  if (x.dtype == DType::bf16) {
    GemmBf16 fused{rows, width, x.cols(), x.data, w.data};
    fused.bias = bias.data, fused.y = y.data, fused.second = preactivation.data;
    fused.after = After::gelu, fused.gelu = kind;
    if (products_->multiply(fused)) return;
  }
  const View u = preactivation ? preactivation : y;
  linear_forward(u, x, w, bias);
  gelu_forward(y, u, kind);
}

void CudaKernels::linear_gelu_backward_input(Sink dpreactivation, View y, CView dy, CView w,
                                             CView preactivation, Gelu kind) {
  const char* op = "linear_gelu_backward_input";
  const auto [rows, width] =
      Require::linear_gelu_backward_input(op, dpreactivation, y, dy, w, preactivation);
  if (dpreactivation && !dpreactivation.accumulate && dpreactivation.to.dtype == DType::bf16) {
    GemmBf16 fused{rows, width, dy.cols(), dy.data, w.data, true};
    fused.y = dpreactivation.to.data, fused.operand = preactivation.data, fused.second = y.data;
    fused.after = After::gelu_backward, fused.gelu = kind;
    if (products_->multiply(fused)) return;
  }
  if (y) gelu_forward(y, preactivation, kind);
  visit(dy.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    visit_sink<T>(dpreactivation, op, [&](auto to) {
      using To = decltype(to);
      const auto multiply = [&](auto* dg) {
        using Product = std::remove_pointer_t<decltype(dg)>;
        const TimesGeluSlope<Product, T> f{dg, data<T>(preactivation), kind == Gelu::exact};
        for_elements(op, out_of<To>(dpreactivation), rows * width, f, stream_);
      };
      if (!dpreactivation.accumulate) {  // the product stands where its result goes
        linear_backward_input(dpreactivation, dy, w);
        multiply(data<To>(dpreactivation.to));
      } else {
        const Tensor product = scratch({rows, width});
        linear_backward_input({product}, dy, w);
        multiply(data<float>(product));
      }
    });
  });
}

}  // namespace switchback::cuda
