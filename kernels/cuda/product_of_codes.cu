// product_of_codes.cu: y = scale_a[m] scale_b[n] Σ_k a[m, k] b[n, k] + bias[n] for codes a (M, K), b (N, K).
//
//   int8      our own kernels (gemm_int8.cuh); sizes that they do not take, and f32 results, go through a
//             plain kernel. The same bits both ways: integer sums are exact.
//   8-bit     on Hopper cuBLASLt (gemm_fp8.h). Elsewhere, and for other sizes: codes are written out as bf16,
//   floats    which holds them exactly, and multiplied in 16 bits.
#include "kernels/cuda/codes.cuh"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/gemm_fp8.h"
#include "kernels/cuda/gemm_int8.cuh"

namespace switchback::cuda {
namespace {

constexpr int tile = 16;

// Element by element, exactly: tiles of 16 x 16 through shared memory.
template <class To>
__global__ void __launch_bounds__(tile* tile)
    multiply_int8_plainly(To* y, const int8_t* a, const int8_t* b, const float* a_scale, const float* b_scale,
                          bool rows_scaled, bool columns_scaled, const To* bias, int64_t m, int64_t n,
                          int64_t k) {
  __shared__ int left[tile][tile + 1], right[tile][tile + 1];
  const int x = threadIdx.x, row_of_tile = threadIdx.y;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * tile + row_of_tile,
                first = static_cast<int64_t>(blockIdx.y) * tile;
  int sum = 0;
  for (int64_t from = 0; from < k; from += tile) {
    left[row_of_tile][x] = row < m && from + x < k ? a[row * k + from + x] : 0;
    right[row_of_tile][x] =
        first + row_of_tile < n && from + x < k ? b[(first + row_of_tile) * k + from + x] : 0;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < tile; ++i) sum += left[row_of_tile][i] * right[x][i];
    __syncthreads();
  }
  const int64_t column = first + x;
  if (row >= m || column >= n) return;
  y[row * n + column] =
      from_float<To>(scaled_sum(static_cast<float>(sum), a_scale[rows_scaled ? row : 0],
                                b_scale[columns_scaled ? column : 0], bias ? to_float(bias[column]) : 0.0f));
}

template <Format format>
struct Decode {
  const uint8_t* codes;
  __device__ void operator()(float (&v)[elements_of_thread], int64_t i, int64_t valid) const {
    decode<format>(v, codes + i, valid);
  }
};
Tensor as_bf16(const CudaKernels& k, const CodeView& x) {
  const Tensor values = k.scratch({x.codes.rows(), x.codes.cols()}, DType::bf16);
  const uint8_t* codes = static_cast<const uint8_t*>(x.codes.data);
  if (x.format == Format::e4m3)
    for_elements("product_of_codes", out_of<bf16>(values), values.size(), Decode<Format::e4m3>{codes},
                 k.stream());
  else
    for_elements("product_of_codes", out_of<bf16>(values), values.size(), Decode<Format::e5m2>{codes},
                 k.stream());
  return values;
}

template <class T>
struct ScaleSums {
  const float *sums, *a_scale, *b_scale;
  bool rows_scaled, columns_scaled;
  const T* bias;
  int width;
  __device__ void operator()(float (&v)[elements_of_thread], int64_t row, int column, int valid) const {
    load(v, sums + row * width + column, valid);
    const float own = a_scale[rows_scaled ? row : 0];
#pragma unroll
    for (int e = 0; e < elements_of_thread; ++e)
      if (e < valid)
        v[e] = scaled_sum(v[e], own, b_scale[columns_scaled ? column + e : 0],
                          bias ? to_float(bias[column + e]) : 0.0f);
  }
};

}  // namespace

void CudaKernels::product_of_codes(View y, const CodeView& a, const CodeView& b, CView bias) {
  const char* op = "product_of_codes";
  const int64_t rows = a.codes.rows(), cols = b.codes.rows(), inner = a.codes.cols();
  CHECK(has_codes(a.format) && has_codes(b.format), op, ": ", a.format, " times ", b.format, " on a GPU");
  CHECK((a.format == Format::int8) == (b.format == Format::int8), op, ": ", a.format, " times ", b.format);
  check_place(op, "a", a.codes, code_dtype(a.format, y.dtype));
  check_matrix(op, "b", b.codes, cols, inner, code_dtype(b.format, y.dtype));
  check_matrix(op, "y", y, rows, cols, y.dtype);
  CHECK(a.scale.size() == 1 || a.scale.size() == rows, op, ": ", a.scale.size(), " scales of a for ", rows,
        " rows");
  CHECK(b.scale.size() == 1 || b.scale.size() >= cols, op, ": ", b.scale.size(), " scales of b for ", cols,
        " rows");
  check_vector(op, "scale of a", a.scale, a.scale.size(), DType::f32);
  check_vector(op, "scale of b", b.scale, b.scale.size(), DType::f32);
  CHECK(inner <= 131072 || a.format != Format::int8, op, ": ", inner, " products may overflow 32 bits");
  if (bias) check_vector(op, "bias", bias, cols, y.dtype);
  if (y.size() == 0) return;
  const bool rows_scaled = a.scale.size() > 1, columns_scaled = b.scale.size() >= cols;
  const bool fits = y.dtype == DType::bf16 && inner > 0 && inner % 16 == 0 && aligned(a.codes.data) &&
                    aligned(b.codes.data) && aligned(y.data) && a.scale.size() == rows;

  if (a.format == Format::int8) {
    if (fits && cols % 8 == 0) {
      CView b_scale = b.scale;
      b_scale.shape = Shape{b.scale.size() == cols ? cols : 1};  // more are copies of one
      y.shape = Shape{rows, cols};
      return gemm_int8(
          {.y = y, .x = a.codes, .w = b.codes, .row_scale = a.scale, .weight_scale = b_scale, .bias = bias},
          stream_);
    }
    return visit(y.dtype, op, [&](auto tag) {
      using T = decltype(tag);
      const dim3 grid(blocks_for(rows, tile), blocks_for(cols, tile));
      CHECK(grid.y < 65536, op, ": ", cols, " columns are too many");
      multiply_int8_plainly<<<grid, dim3(tile, tile), 0, stream_>>>(
            data<T>(y), data<int8_t>(a.codes), data<int8_t>(b.codes), data<float>(a.scale),
          data<float>(b.scale), rows_scaled, columns_scaled, data<T>(bias), rows, cols, inner);
      check_launch(op);
    });
  }

  const bool both_e5m2 = a.format == Format::e5m2 && b.format == Format::e5m2;
  if (fits && rows % 16 == 0 && cols % 16 == 0 && columns_scaled && !both_e5m2 && on_hopper()) {
    const bool fast = a.format == Format::e4m3 && b.format == Format::e4m3;  // gradients are e5m2
    if (multiply_fp8(*this, y, a, b, bias, fast)) return;
  }
  const Tensor left = as_bf16(*this, a), right = as_bf16(*this, b), sums = scratch({rows, cols});
  matmul({sums}, left, Transpose::no, right, Transpose::yes);
  visit(y.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    const ScaleSums<T> scaled{data<float>(sums), data<float>(a.scale), data<float>(b.scale),  rows_scaled,
                              columns_scaled,    data<T>(bias),        static_cast<int>(cols)};
    for_rows(op, out_of<T>(y), rows, cols, scaled, stream_);
  });
}

}  // namespace switchback::cuda
