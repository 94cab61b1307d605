// logits.cuh: what both contrastive losses share: a block of rows of the similarity matrix at a time.
//
// The N x N logits never exist as a whole: as many own rows as fit into `block_elements` times all N columns
// do, in f32. The products are full f32 (gemm_plan.h). Sums over a row are one block's, sums over rows are
// taken in f64 by one block at the end, all in a fixed order.
#pragma once

#include "kernels/cuda/gemm_plan.h"
#include "kernels/cuda/math.cuh"
#include "kernels/cuda/reduce.cuh"

namespace switchback::cuda {

constexpr int64_t block_elements = int64_t{1} << 24;  // 64 MiB of logits at a time
constexpr int row_threads = 256;                      // a block a row

struct PairSizes {
  int64_t own, all, width;
  int64_t block_rows() const {
    return std::clamp<int64_t>(block_elements / std::max<int64_t>(1, all), 1, std::max<int64_t>(1, own));
  }
};
// Rows (own, E) against columns (all, E).
inline PairSizes pair_sizes(const char* op, const CView& images, const CView& texts) {
  const PairSizes s{images.rows(), texts.rows(), images.cols()};
  check_place(op, "images", images, DType::f32);
  check_matrix(op, "the columns' texts", texts, s.all, s.width, DType::f32);
  CHECK(s.own > 0 && s.all > 0 && s.width > 0, op, ": images are ", images.shape, ", texts ", texts.shape);
  return s;
}
// This rank's rows (B, E) and everybody's (N, E); own row i is global row first_row + i.
inline PairSizes pair_sizes(const char* op, const CView& images, const CView& texts, const CView& all_texts,
                            int64_t first_row) {
  const PairSizes s = pair_sizes(op, images, all_texts);
  check_matrix(op, "texts", texts, s.own, s.width, DType::f32);
  CHECK(first_row >= 0 && first_row + s.own <= s.all, op, ": own rows ", first_row, " to ", first_row + s.own,
        " of ", all_texts.shape);
  return s;
}

struct Factor {
  const float* data;
  bool transposed = false;
};
// c (m, n) = [c +] a b
inline void multiply(const CudaKernels& k, float* c, bool accumulate, Factor a, Factor b, int64_t m,
                     int64_t n, int64_t inner) {
  GemmProblem p;
  p.m = m;
  p.n = n;
  p.k = inner;
  p.a_transposed = a.transposed;
  p.b_transposed = b.transposed;
  p.accumulate = accumulate;
  CHECK(k.products().multiply(p, c, a.data, b.data), "contrastive loss: cuBLASLt has no product for ",
        Shape{m, n, inner});
}

// For blocks of own rows: logits (rows, N) = own rows times all rows; then each(first row, rows, logits)
// launches.
template <class Each>
void for_logit_blocks(const CudaKernels& k, const CView& own, const CView& all, const PairSizes& s,
                      const Each& each) {
  const int64_t block_rows = s.block_rows();
  const Tensor block = k.scratch({block_rows, s.all});
  for (int64_t from = 0; from < s.own; from += block_rows) {
    const int64_t rows = std::min(block_rows, s.own - from);
    multiply(k, data<float>(block), false, {data<float>(own) + from * s.width}, {data<float>(all), true}, rows,
             s.all, s.width);
    each(from, rows, data<float>(block));
  }
}

// d own rows (rows, E) of a block, from block (rows, N) of dloss/d similarity and the other side's rows (N,
// E).
inline void block_gradient(const CudaKernels& k, const Sink& sink, int64_t from, int64_t rows,
                           const float* block, const CView& all, const PairSizes& s) {
  if (sink)
    multiply(k, data<float>(sink.to) + from * s.width, sink.accumulate, {block}, {data<float>(all)}, rows,
             s.width, s.all);
}

// to = or += factor · dloss · Σ values (count); dloss may be absent.
static __global__ void __launch_bounds__(1024)
finish_scalar(Out<float> to, const float* values, int64_t count, double factor, const float* dloss) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += 1024) sum += static_cast<double>(values[i]);
  sum = block_sum<1024>(sum);
  if (threadIdx.x == 0)
    to.put(0, static_cast<float>(sum * factor * (dloss ? static_cast<double>(*dloss) : 1.0)));
}

// The largest of a block's values, given to all of its threads.
__device__ __forceinline__ float block_max(float value) {
  __shared__ float of_warp[row_threads / 32];
  value = warp_max(value);
  __syncthreads();
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < row_threads / 32; ++w) value = fmaxf(value, of_warp[w]);
  return value;
}

}  // namespace switchback::cuda
