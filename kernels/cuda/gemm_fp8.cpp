#include "kernels/cuda/gemm_fp8.h"

#include <map>
#include <memory>
#include <mutex>
#include <tuple>

#include "kernels/cuda/cublas_check.h"
#include "kernels/cuda/cuda_check.cuh"
#include "kernels/cuda/cuda_kernels.h"

namespace switchback::cuda {
namespace {

constexpr size_t workspace_bytes = size_t{32} << 20;

struct Problem {
  int64_t m, n, k;
  Format a, b;
  bool bias, fast;
  auto operator<=>(const Problem&) const = default;
};

cudaDataType_t type_of(Format format) { return format == Format::e4m3 ? CUDA_R_8F_E4M3 : CUDA_R_8F_E5M2; }

// The library thinks in columns: its A is our b, its D our y transposed.
struct Plan {
  cublasLtMatmulDesc_t description = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, y = nullptr;
  cublasLtMatmulHeuristicResult_t chosen{};
  bool possible = false;

  Plan(cublasLtHandle_t handle, const Problem& p) {
    CUBLAS_CHECK(cublasLtMatmulDescCreate(&description, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    set(description, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    set(description, CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N);
    set(description, CUBLASLT_MATMUL_DESC_FAST_ACCUM, static_cast<int8_t>(p.fast));
    set(description, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F);
    set(description, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F);
    if (p.bias) {
      set(description, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
      set(description, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, CUDA_R_16BF);
    }
    const auto size = [](int64_t n) { return static_cast<uint64_t>(n); };
    CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&b, type_of(p.b), size(p.k), size(p.n), p.k));
    CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&a, type_of(p.a), size(p.k), size(p.m), p.k));
    CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&y, CUDA_R_16BF, size(p.n), size(p.m), p.n));
    point_at(p, reinterpret_cast<const void*>(256), reinterpret_cast<const void*>(256),
             reinterpret_cast<const void*>(256));  // alignment is all that the heuristic reads
    cublasLtMatmulPreference_t preference = nullptr;
    CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference));
    set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace_bytes);
    // Split sums are added in order or not at all: the same bits every time (gemm_plan.h).
    set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
        static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    int count = 0;
    const cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(handle, description, b, a, y, y, preference, 1, &chosen, &count);
    cublasLtMatmulPreferenceDestroy(preference);
    possible = status == CUBLAS_STATUS_SUCCESS && count > 0;
  }
  Plan(const Plan&) = delete;
  ~Plan() {
    for (cublasLtMatrixLayout_t layout : {a, b, y})
      if (layout) cublasLtMatrixLayoutDestroy(layout);
    if (description) cublasLtMatmulDescDestroy(description);
  }
  void point_at(const Problem& p, const void* a_scale, const void* b_scale, const void* bias) const {
    set(description, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, b_scale);
    set(description, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, a_scale);
    if (p.bias) set(description, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
  }
};

struct Library {
  cublasLtHandle_t handle = nullptr;
  std::map<Problem, std::unique_ptr<Plan>> plans;
  std::mutex mutex;
};

// One a device; never destroyed, like the device's kernels.
Library& library_of(Device device) {
  static std::map<int, Library>& all = *new std::map<int, Library>;
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  Library& library = all[device.index];
  if (!library.handle) CUBLAS_CHECK(cublasLtCreate(&library.handle));
  return library;
}

}  // namespace

bool multiply_fp8(const CudaKernels& k, View y, const CodeView& a, const CodeView& b, CView bias, bool fast) {
  Library& library = library_of(k.device());
  const std::lock_guard lock(library.mutex);
  const Problem problem{
      a.codes.rows(), b.codes.rows(), a.codes.cols(), a.format, b.format, static_cast<bool>(bias), fast};
  std::unique_ptr<Plan>& plan = library.plans[problem];
  if (!plan) plan = std::make_unique<Plan>(library.handle, problem);
  if (!plan->possible) return false;
  plan->point_at(problem, a.scale.data, b.scale.data, bias.data);
  const Tensor workspace = k.scratch({static_cast<int64_t>(workspace_bytes)}, DType::u8);
  const float one = 1, zero = 0;
  CUBLAS_CHECK(cublasLtMatmul(library.handle, plan->description, &one, b.codes.data, plan->b, a.codes.data,
                              plan->a, &zero, y.data, plan->y, y.data, plan->y, &plan->chosen.algo,
                              workspace.data(), workspace_bytes, k.stream()));
  return true;
}

}  // namespace switchback::cuda
