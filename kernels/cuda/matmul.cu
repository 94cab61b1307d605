// matmul.cu: matmul and the three products of a linear layer.
//
//   y = x wᵀ + bias,   dx = dy w,   dw = dyᵀ x,   dbias = Σ_rows dy
//
// By cuBLASLt or kernels of our own, whichever is faster (gemm_plan.h); what neither has an algorithm for
// (empty sums, odd leading dimensions) goes through a plain tiled kernel. Sums are f32, the bias is added to
// the finished sum, and the result is rounded once.
#include "kernels/cuda/gemm_plan.h"
#include "kernels/cuda/gemm_weight_gradient.cuh"
#include "kernels/cuda/quantize_beside.cuh"
#include "kernels/cuda/reduce.cuh"

namespace switchback::cuda {
namespace {

constexpr int tile = 16;

// c (m, n) = op(a) op(b) + bias, element by element: tiles of 16 x 16 through shared memory.
template <class T, class To>
__global__ void __launch_bounds__(tile* tile)
    multiply_plainly(Out<To> c, const T* a, bool a_transposed, const T* b, bool b_transposed, const T* bias,
                     int64_t m, int64_t n, int64_t k) {
  __shared__ float left[tile][tile + 1], right[tile][tile + 1];
  const int x = threadIdx.x, y = threadIdx.y;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * tile + y,
                column = static_cast<int64_t>(blockIdx.y) * tile + x;
  float sum = 0;
  for (int64_t from = 0; from < k; from += tile) {
    const int64_t ka = from + x, kb = from + y;
    left[y][x] = row < m && ka < k ? to_float(a[a_transposed ? ka * m + row : row * k + ka]) : 0.0f;
    right[y][x] = column < n && kb < k ? to_float(b[b_transposed ? column * k + kb : kb * n + column]) : 0.0f;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < tile; ++i) sum += left[y][i] * right[i][x];
    __syncthreads();
  }
  if (row < m && column < n) c.put(row * n + column, bias ? sum + to_float(bias[column]) : sum);
}

// sink (m, n) = op(a) op(b) + bias
void product(const char* op, const CudaKernels& k, const Sink& sink, const CView& a, bool a_transposed,
             const CView& b, bool b_transposed, int64_t m, int64_t n, int64_t inner, const CView& bias = {}) {
  if (m * n == 0) return;
  GemmProblem problem;
  problem.m = m;
  problem.n = n;
  problem.k = inner;
  problem.a_transposed = a_transposed;
  problem.b_transposed = b_transposed;
  problem.inputs = a.dtype;
  problem.output = sink.to.dtype;
  problem.epilogue = bias ? GemmProblem::add_bias : GemmProblem::plain;
  problem.accumulate = sink.accumulate;
  if (inner > 0 && k.products().multiply(problem, sink.to.data, a.data, b.data, bias.data)) return;
  visit(a.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    visit_sink<T>(sink, op, [&](auto to) {
      const dim3 grid(blocks_for(m, tile), blocks_for(n, tile));
      CHECK(grid.y < 65536, op, ": ", n, " columns and no algorithm of cuBLASLt");
      multiply_plainly<<<grid, dim3(tile, tile), 0, k.stream()>>>(out_of<decltype(to)>(sink), data<T>(a),
                                                                  a_transposed, data<T>(b), b_transposed,
                                                                  data<T>(bias), m, n, inner);
      check_launch(op);
    });
  });
}

template <class T>
struct RowSum {
  const T* x;
  int width;
  __device__ void operator()(float (&sum)[1][sum_columns], int64_t row, int column, int valid) const {
    load(sum[0], x + row * width + column, valid);
  }
};

}  // namespace

void CudaKernels::matmul(Sink c, CView a, Transpose transpose_a, CView b, Transpose transpose_b) {
  if (!c) return;
  const bool ta = transpose_a == Transpose::yes, tb = transpose_b == Transpose::yes;
  const char* op = "matmul";
  const auto [m, n, k] = Require::matmul(op, c, a, ta, b, tb);
  product(op, *this, c, a, ta, b, tb, m, n, k);
}

void CudaKernels::linear_forward(View y, CView x, CView w, CView bias) {
  const char* op = "linear_forward";
  const auto [m, n, k] = Require::linear_forward(op, y, x, w, bias);
  product(op, *this, {y, false}, x, false, w, true, m, n, k, bias);
}

void CudaKernels::linear_backward_input(Sink dx, CView dy, CView w) {
  if (!dx) return;
  const char* op = "linear_backward_input";
  const auto [m, n, k] = Require::linear_backward_input(op, dx, dy, w);
  product(op, *this, dx, dy, false, w, false, m, n, k);
}

void CudaKernels::linear_backward_weight(Sink dw, Sink dbias, CView dy, CView x) {
  const char* op = "linear_backward_weight";
  const auto [n, k, m] = Require::linear_backward_weight(op, dw, dbias, dy, x);  // of the product dyᵀ x

  const auto by_parts = [&](const Sink& dw, const Sink& dbias) {
    if (dw) product(op, *this, dw, dy, true, x, false, n, k, m);
    if (!dbias) return;
    visit(dy.dtype, op, [&](auto tag) {
      using T = decltype(tag);
      sum_rows<1>(op, *this, {dbias}, m, n, RowSum<T>{data<T>(dy), static_cast<int>(n)});
    });
  };
  if (dw && dy.dtype == DType::bf16 && dw.to.dtype == DType::f32 &&
      (!dbias || dbias.to.dtype == DType::f32)) {
    GemmWeightGradient both{m, n, k, dy.data, x.data};
    both.dw = static_cast<float*>(dw.to.data), both.accumulate_dw = dw.accumulate;
    both.dbias = static_cast<float*>(dbias.to.data), both.accumulate_dbias = dbias.accumulate;
    const auto sums_beside = [&](const GemmWeightGradient& p) {
      GemmWeightGradient product = p;
      product.dbias = nullptr;  // by the sweep
      Sink sums = dbias;
      sums.to.data = p.dbias;  // trials have memory of their own
      return weight_gradient_beside(product, {}, sums);
    };
    if (products_->weight_gradient(both, by_parts, sums_beside)) return;
  }
  by_parts(dw, dbias);
}

}  // namespace switchback::cuda
