// rivals.cuh: the products a user would call instead, all from cuBLASLt: fp8 with row and column scales,
// bf16, and int8 with a bare s32 result. For each shape the library is asked for its best eight algorithms
// and the fastest is kept.
#pragma once

#include <cublasLt.h>

#include "kernels/cuda/cuda_check.cuh"

#define CUBLAS_CHECK(call)                                                               \
  do {                                                                                   \
    const cublasStatus_t status = (call);                                                \
    CHECK(status == CUBLAS_STATUS_SUCCESS, #call ": ", cublasLtGetStatusString(status)); \
  } while (0)

namespace switchback::lessons {

enum class Rival { fp8, bf16, int8 };

// y (M, N) = x (M, K) w (N, K)ᵀ. In the library's column-major words: D (N x M) = Aᵀ B with A = w, B = x.
class CublasLt {
 public:
  static constexpr size_t kWorkspaceBytes = 64 << 20;

  // fp8: scales are vectors (N for w, M for x), bias (N) bf16, y bf16. bf16: bias, y bf16. int8: y s32.
  CublasLt(cublasLtHandle_t handle, void* workspace, Rival rival, int M, int N, int K, const float* w_scale,
           const float* x_scale, const void* bias)
      : handle_(handle), workspace_(workspace), rival_(rival) {
    const cudaDataType_t in = rival == Rival::fp8    ? CUDA_R_8F_E4M3
                              : rival == Rival::bf16 ? CUDA_R_16BF
                                                     : CUDA_R_8I;
    const cudaDataType_t out = rival == Rival::int8 ? CUDA_R_32I : CUDA_R_16BF;
    CUBLAS_CHECK(cublasLtMatmulDescCreate(&operation_,
                                          rival == Rival::int8 ? CUBLAS_COMPUTE_32I : CUBLAS_COMPUTE_32F,
                                          rival == Rival::int8 ? CUDA_R_32I : CUDA_R_32F));
    set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    set(CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N);
    if (rival == Rival::fp8) {
      set(CUBLASLT_MATMUL_DESC_FAST_ACCUM, static_cast<int8_t>(1));
      set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F);
      set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F);
      set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, w_scale);
      set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, x_scale);
    }
    if (bias && rival != Rival::int8) {
      set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
      set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, CUDA_R_16BF);
      set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
    }
    CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&a_, in, K, N, K));
    CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&b_, in, K, M, K));
    CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&d_, out, N, M, N));
    cublasLtMatmulPreference_t preference;
    CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference));
    const size_t bytes = kWorkspaceBytes;
    CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                      &bytes, sizeof(bytes)));
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
        handle_, operation_, a_, b_, d_, d_, preference, 8, candidates_, &candidate_count_);
    if (status != CUBLAS_STATUS_SUCCESS) candidate_count_ = 0;
    cublasLtMatmulPreferenceDestroy(preference);
  }
  CublasLt(const CublasLt&) = delete;
  ~CublasLt() {
    cublasLtMatmulDescDestroy(operation_);
    for (cublasLtMatrixLayout_t layout : {a_, b_, d_}) cublasLtMatrixLayoutDestroy(layout);
  }

  bool supported() const { return candidate_count_ > 0; }

  // Times the candidates and keeps the best. Returns false if none runs.
  bool choose(const void* x, const void* w, void* y, cudaStream_t stream) {
    float best = 1e30f;
    cudaEvent_t start, stop;
    CUDA_CHECK(cudaEventCreate(&start));
    CUDA_CHECK(cudaEventCreate(&stop));
    for (int i = 0; i < candidate_count_; ++i) {
      bool works = true;
      for (int pass = 0; pass < 8 && works; ++pass) {
        if (pass == 2) CUDA_CHECK(cudaEventRecord(start, stream));
        works = multiply(i, x, w, y, stream) == CUBLAS_STATUS_SUCCESS;
      }
      if (!works) continue;
      float milliseconds;
      CUDA_CHECK(cudaEventRecord(stop, stream));
      CUDA_CHECK(cudaEventSynchronize(stop));
      CUDA_CHECK(cudaEventElapsedTime(&milliseconds, start, stop));
      if (milliseconds < best) best = milliseconds, chosen_ = i;
    }
    CUDA_CHECK(cudaEventDestroy(start));
    CUDA_CHECK(cudaEventDestroy(stop));
    return best < 1e30f;
  }
  void run(const void* x, const void* w, void* y, cudaStream_t stream) {
    CUBLAS_CHECK(multiply(chosen_, x, w, y, stream));
  }

 private:
  template <class T>
  void set(cublasLtMatmulDescAttributes_t attribute, T value) {
    CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(operation_, attribute, &value, sizeof(value)));
  }
  cublasStatus_t multiply(int i, const void* x, const void* w, void* y, cudaStream_t stream) {
    const float one = 1.0f, zero = 0.0f;
    const int one_int = 1, zero_int = 0;
    const bool integer = rival_ == Rival::int8;
    return cublasLtMatmul(handle_, operation_, integer ? static_cast<const void*>(&one_int) : &one, w, a_, x,
                          b_, integer ? static_cast<const void*>(&zero_int) : &zero, y, d_, y, d_,
                          &candidates_[i].algo, workspace_, kWorkspaceBytes, stream);
  }

  cublasLtHandle_t handle_;
  void* workspace_;
  Rival rival_;
  cublasLtMatmulDesc_t operation_;
  cublasLtMatrixLayout_t a_, b_, d_;
  cublasLtMatmulHeuristicResult_t candidates_[8];
  int candidate_count_ = 0, chosen_ = 0;
};

}  // namespace switchback::lessons
