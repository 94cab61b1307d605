// gemm_int8.cu: the preconditions of an int8 product, and which kernel computes it on this device.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/gemm_int8.cuh"

namespace switchback {

void check_gemm_int8(const GemmInt8& a) {
  const int64_t M = a.x.rows(), K = a.x.cols(), N = a.w.rows();
  CHECK(a.x.dtype == DType::i8 && a.w.dtype == DType::i8 && a.y.dtype == DType::bf16,
        "int8 product: x and w are i8 and y is bf16, got ", a.x.dtype, ", ", a.w.dtype, ", ", a.y.dtype);
  CHECK(a.w.cols() == K && a.y.rows() == M && a.y.cols() == N, "int8 product: x ", a.x.shape, " times w ",
        a.w.shape, " transposed does not give y ", a.y.shape);
  CHECK(K % 16 == 0 && N % 8 == 0, "int8 product: K must be a multiple of 16 and N of 8, got ", K, " and ",
        N);
  CHECK(K > 0 && K <= 131072, "int8 product: K = ", K, " may overflow 32 bits (at most 131072)");
  CHECK(M < (int64_t{1} << 31) && N < (int64_t{1} << 31), "int8 product: y ", a.y.shape, " is too large");
  CHECK(a.row_scale.size() == M, "int8 product: ", a.row_scale.size(), " row scales for ", M, " rows");
  CHECK(a.weight_scale.size() == 1 || a.weight_scale.size() == N, "int8 product: weight_scale has ",
        a.weight_scale.size(), " values, expected 1 or ", N);
  for (const CView& of_columns : {a.bias, a.gamma}) {
    CHECK(!of_columns || (of_columns.size() == N && of_columns.dtype == DType::bf16),
          "int8 product: bias and gamma are bf16 with ", N, " values, got ", of_columns.shape);
  }
  CHECK((a.extra_kind == Extra::none) == !a.extra,
        "int8 product: an extra operand and its kind come together");
  CHECK(!a.extra || (a.extra.shape == a.y.shape && a.extra.dtype == DType::bf16),
        "int8 product: the extra operand is bf16 and has the shape of y ", a.y.shape, ", got ",
        a.extra.shape);
  CHECK(!a.gamma || a.extra_kind == Extra::residual, "int8 product: gamma goes with a residual");
}

void gemm_int8(const GemmInt8& a, cudaStream_t stream) {
  if (cuda::on_hopper())
    gemm_int8_sm90(a, stream);
  else
    gemm_int8_mma(a, stream);
}

}  // namespace switchback
