// product_and_codes.cu: the product of codes where those of its left operand are still to be made.
//
//   codes (M, K), scale (M) of x (M, K), by row;   b (N, K)
//   y (M, N) = scale[m] scale_b[n] Σ_k codes[m, k] b[n, k] + bias[n]
//
// The product of a row waits for that row's codes alone. So the chip quantises one half of the rows; then,
// while it multiplies those, a few multiprocessors quantise the other half (quantize_beside.cuh), which waits
// for memory where the product waits for the tensor cores; then it multiplies the rest. How many, or whether
// all codes had better come first, is timed once for a shape and remembered. The bits are the same in any
// case: sums of int8 products are exact.
#include <type_traits>
#include <vector>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/gemm_plan.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/quantize_beside.cuh"
#include "kernels/cuda/spared.h"

namespace switchback::cuda {
namespace {

constexpr int64_t rows_of_tiles = 256;  // of the product's pairs of blocks: a half of the rows is whole tiles

// As many as end together with the product of a half, where the trials begin: a row's K elements, of which
// a multiprocessor is taken to encode 30 a nanosecond, face 2 N K operations at 1350 T/s, so N alone decides.
// 0: not worth a trial.
double wanted_beside(int64_t M, int64_t N, int64_t K) {
  return M < 4096 || N < 512 || K < 768 ? 0 : 1350e12 / (2 * static_cast<double>(N) * 30e9);
}

// A vector's rows are its elements.
template <class V>
V rows_of(V of, int64_t from, int64_t count) {
  using Byte = std::conditional_t<std::is_same_v<V, View>, char, const char>;
  const bool vector = of.shape.rank() == 1;
  const int64_t row_bytes = (vector ? 1 : of.cols()) * static_cast<int64_t>(size_of(of.dtype));
  of.data = static_cast<Byte*>(of.data) + from * row_bytes;
  of.shape = vector ? Shape{count} : Shape{count, of.cols()};
  return of;
}

}  // namespace

void CudaKernels::product_and_codes(View y, View codes, View scale, CView x, const CodeView& b, CView bias,
                                    Format format) {
  const char* op = "product_and_codes";
  const int64_t m = x.rows(), k = x.cols(), n = b.codes.rows();
  check_matrix(op, "codes", codes, m, k, code_dtype(format, x.dtype));
  check_vector(op, "scale", scale, m, DType::f32);
  check_matrix(op, "y", y, m, n, y.dtype);
  const int64_t half = m / 2 / rows_of_tiles * rows_of_tiles;

  const auto rest_beside = [&](int left) {
    QuantizeBeside sweep;
    sweep.codes = rows_of(codes, half, m - half).data;
    sweep.scale = static_cast<float*>(rows_of(scale, half, m - half).data);
    sweep.x = rows_of(x, half, m - half).data;
    sweep.rows = m - half, sweep.width = k, sweep.format = format, sweep.multiprocessors = left;
    return sweep;
  };
  const auto multiply = [&](int64_t from, int64_t count) {
    product_of_codes(rows_of(y, from, count),
                     {rows_of(CView(codes), from, count), rows_of(CView(scale), from, count), format}, b,
                     bias);
  };
  const auto run = [&](int left) {  // on so many multiprocessors; 0: one after the other
    if (left == 0) {
      quantize(codes, {}, scale, x, {}, format, Granularity::row);
      multiply(0, m);
      return true;
    }
    quantize(rows_of(codes, 0, half), {}, rows_of(scale, 0, half), rows_of(x, 0, half), {}, format,
             Granularity::row);
    fork_beside([&](cudaStream_t stream) { quantize_beside(rest_beside(left), nullptr, stream); });
    {
      const Spare spare(left);
      multiply(0, half);
    }
    join_beside();
    multiply(half, m - half);
    return true;
  };

  const bool possible = half > 0 && k > 0 && format == Format::int8 && x.dtype == DType::bf16 &&
                        quantize_beside_serves(rest_beside(2));
  const std::vector<int> candidates = possible ? candidates_beside(wanted_beside(m, n, k)) : std::vector{0};
  int left = candidates[0];
  if (candidates.size() > 1)
    left = products_->choose(concat("codes-first-", m, 'x', n, 'x', k, '-', format), candidates, run);
  run(left);
}

}  // namespace switchback::cuda
