#include "kernels/cuda/gemm_plan.h"

#include <cublasLt.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

#include "kernels/cuda/cuda_check.cuh"
#include "runtime/tensor.h"

namespace switchback::cuda {
namespace {

#define CUBLAS_CHECK(call)                                          \
  do {                                                              \
    const cublasStatus_t cublas_check_status = (call);              \
    CHECK(cublas_check_status == CUBLAS_STATUS_SUCCESS, #call ": ", \
          cublasLtGetStatusString(cublas_check_status));            \
  } while (0)

constexpr int candidates = 8, timed_runs = 3;

cudaDataType_t type_of(DType dtype) { return dtype == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F; }

uint8_t alignment_of(const void* memory) {
  const auto address = reinterpret_cast<uintptr_t>(memory);
  return static_cast<uint8_t>(std::min<uintptr_t>(16, address & (~address + 1)));
}

template <class T>
void set(cublasLtMatmulDesc_t description, cublasLtMatmulDescAttributes_t attribute, const T& value) {
  CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(description, attribute, &value, sizeof(value)));
}
template <class T>
void set(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute,
         const T& value) {
  CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)));
}

// A row-major matrix as it lies in memory, (rows, cols), which in columns is (cols, rows).
cublasLtMatrixLayout_t layout(DType dtype, int64_t rows, int64_t cols) {
  cublasLtMatrixLayout_t made = nullptr;
  CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&made, type_of(dtype), static_cast<uint64_t>(cols),
                                          static_cast<uint64_t>(rows), cols));
  return made;
}

// A problem as a word without spaces.
std::string word_of(const GemmProblem& p) {
  return concat(p.m, 'x', p.n, 'x', p.k, p.a_transposed ? 'T' : 'N', p.b_transposed ? 'T' : 'N', '-',
                p.inputs, '-', p.output, "-e", int{p.epilogue}, p.accumulate ? "-add" : "", "-align",
                int{p.alignment_a}, '.', int{p.alignment_b}, '.', int{p.alignment_c});
}

// The timed choices: lines "problem candidate". Of two lines for one problem the first counts. Without a
// place to write to, choices live as long as the process.
class ChoiceFile {
 public:
  ChoiceFile() = default;
  explicit ChoiceFile(std::filesystem::path path) : path_(std::move(path)) {
    std::ifstream file(path_);
    std::string problem;
    for (int candidate = 0; file >> problem >> candidate;) choices_.emplace(problem, candidate);
  }
  const int* find(const std::string& problem) const {
    const auto found = choices_.find(problem);
    return found == choices_.end() ? nullptr : &found->second;
  }
  void add(const std::string& problem, int candidate) {
    if (!choices_.emplace(problem, candidate).second || path_.empty()) return;
    std::error_code ignored;
    std::filesystem::create_directories(path_.parent_path(), ignored);
    std::ofstream(path_, std::ios::app)
        << problem + ' ' + std::to_string(candidate) + '\n';  // one write: lines stay whole
  }

 private:
  std::filesystem::path path_;
  std::map<std::string, int> choices_;
};

std::filesystem::path choice_path(Device device) {
  if (const char* chosen = std::getenv("SWITCHBACK_GEMM_CACHE")) return chosen;
  const char *cache = std::getenv("XDG_CACHE_HOME"), *home = std::getenv("HOME");
  if (!cache && !home) return {};
  cudaDeviceProp properties;
  CUDA_CHECK(cudaGetDeviceProperties(&properties, device.index));
  std::string gpu = properties.name;
  std::replace(gpu.begin(), gpu.end(), ' ', '-');
  return (cache ? std::filesystem::path(cache) : std::filesystem::path(home) / ".cache") / "switchback" /
         concat("gemm-", gpu, '-', cublasLtGetVersion(), ".txt");
}

}  // namespace

struct GemmPlans::Library {
  Device device;
  cudaStream_t stream = nullptr;
  cublasLtHandle_t handle = nullptr;
  void* workspace = nullptr;
  bool tuned = true;
  ChoiceFile choices;
};

struct GemmPlans::Plan {
  cublasLtMatmulDesc_t description = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;  // cuBLASLt's A is our b
  cublasLtMatmulAlgo_t algorithm{};
  bool possible = false;
  float beta = 0;

  ~Plan() {
    for (cublasLtMatrixLayout_t l : {a, b, c})
      if (l) cublasLtMatrixLayoutDestroy(l);
    if (description) cublasLtMatmulDescDestroy(description);
  }
  cublasStatus_t run(const Library& library, const cublasLtMatmulAlgo_t& with, void* to, const void* our_a,
                     const void* our_b) const {
    const float one = 1;
    return cublasLtMatmul(library.handle, description, &one, our_b, a, our_a, b, &beta, to, c, to, c, &with,
                          library.workspace, workspace_bytes, library.stream);
  }
};

GemmPlans::GemmPlans(Device device, cudaStream_t stream) : library_(std::make_unique<Library>()) {
  library_->device = device;
  library_->stream = stream;
  CUBLAS_CHECK(cublasLtCreate(&library_->handle));
  CUDA_CHECK(cudaMalloc(&library_->workspace, workspace_bytes));
  const char* tuning = std::getenv("SWITCHBACK_GEMM_TUNING");
  library_->tuned = !(tuning && std::strcmp(tuning, "0") == 0);
  if (library_->tuned) library_->choices = ChoiceFile(choice_path(device));
}

GemmPlans::~GemmPlans() {
  plans_.clear();
  cudaFree(library_->workspace);
  cublasLtDestroy(library_->handle);
}

const GemmPlans::Plan* GemmPlans::make(const GemmProblem& p, const void* a, const void* b, const void* c) {
  auto plan = std::make_unique<Plan>();
  plan->beta = p.accumulate ? 1.0f : 0.0f;
  CUBLAS_CHECK(cublasLtMatmulDescCreate(&plan->description, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  set(plan->description, CUBLASLT_MATMUL_DESC_TRANSA, p.b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(plan->description, CUBLASLT_MATMUL_DESC_TRANSB, p.a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
  if (p.epilogue != GemmProblem::plain) {
    const bool add = p.epilogue == GemmProblem::add_bias;
    set(plan->description, CUBLASLT_MATMUL_DESC_EPILOGUE,
        add ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_BGRADB);
    set(plan->description, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE,
        static_cast<int32_t>(type_of(add ? p.inputs : p.output)));
    set(plan->description, CUBLASLT_MATMUL_DESC_BIAS_POINTER,
        c);  // of the right alignment, for the heuristic
  }
  plan->a = p.b_transposed ? layout(p.inputs, p.n, p.k) : layout(p.inputs, p.k, p.n);
  plan->b = p.a_transposed ? layout(p.inputs, p.k, p.m) : layout(p.inputs, p.m, p.k);
  plan->c = layout(p.output, p.m, p.n);

  cublasLtMatmulPreference_t preference = nullptr;
  CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference));
  set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(workspace_bytes));
  set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<uint32_t>(p.alignment_b));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<uint32_t>(p.alignment_a));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<uint32_t>(p.alignment_c));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<uint32_t>(p.alignment_c));
  cublasLtMatmulHeuristicResult_t found[candidates];
  int count = 0;
  const cublasStatus_t status =
      cublasLtMatmulAlgoGetHeuristic(library_->handle, plan->description, plan->a, plan->b, plan->c, plan->c,
                                     preference, candidates, found, &count);
  cublasLtMatmulPreferenceDestroy(preference);
  plan->possible = status == CUBLAS_STATUS_SUCCESS && count > 0;
  if (plan->possible) plan->algorithm = found[0].algo;

  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  CUDA_CHECK(cudaStreamIsCapturing(library_->stream, &capture));
  const std::string name = word_of(p);
  const int* chosen = library_->choices.find(name);
  if (plan->possible && chosen && *chosen >= 0 && *chosen < count) {
    plan->algorithm = found[*chosen].algo;
  } else if (plan->possible && count > 1 && library_->tuned && capture == cudaStreamCaptureStatusNone) {
    const Tensor spare({p.m, p.n}, p.output, library_->device);
    const Tensor bias({std::max(p.m, p.n)}, DType::f32, library_->device);
    CUDA_CHECK(cudaMemsetAsync(spare.data(), 0, static_cast<size_t>(spare.size()) * size_of(p.output),
                               library_->stream));
    CUDA_CHECK(cudaMemsetAsync(bias.data(), 0, static_cast<size_t>(bias.size()) * 4, library_->stream));
    if (p.epilogue != GemmProblem::plain)
      set(plan->description, CUBLASLT_MATMUL_DESC_BIAS_POINTER, const_cast<const void*>(bias.data()));
    cudaEvent_t start = nullptr, end = nullptr;
    CUDA_CHECK(cudaEventCreate(&start));
    CUDA_CHECK(cudaEventCreate(&end));
    float best = INFINITY;
    int fastest_candidate = 0;
    for (int i = 0; i < count; ++i) {
      if (plan->run(*library_, found[i].algo, spare.data(), a, b) != CUBLAS_STATUS_SUCCESS)
        continue;  // warms up, too
      float fastest = INFINITY;
      for (int run = 0; run < timed_runs; ++run) {
        CUDA_CHECK(cudaEventRecord(start, library_->stream));
        CUBLAS_CHECK(plan->run(*library_, found[i].algo, spare.data(), a, b));
        CUDA_CHECK(cudaEventRecord(end, library_->stream));
        CUDA_CHECK(cudaEventSynchronize(end));
        float milliseconds = 0;
        CUDA_CHECK(cudaEventElapsedTime(&milliseconds, start, end));
        fastest = std::min(fastest, milliseconds);
      }
      if (fastest < best) {
        best = fastest;
        plan->algorithm = found[i].algo;
        fastest_candidate = i;
      }
    }
    CUDA_CHECK(cudaEventDestroy(start));
    CUDA_CHECK(cudaEventDestroy(end));
    plan->possible = best < INFINITY;
    if (plan->possible) library_->choices.add(name, fastest_candidate);
  }
  return plans_.emplace(p, std::move(plan)).first->second.get();
}

bool GemmPlans::multiply(GemmProblem p, void* c, const void* a, const void* b, const void* bias) {
  p.alignment_a = alignment_of(a);
  p.alignment_b = alignment_of(b);
  p.alignment_c = alignment_of(c);
  const auto known = plans_.find(p);
  const Plan* plan = known != plans_.end() ? known->second.get() : make(p, a, b, c);
  if (!plan->possible) return false;
  if (p.epilogue != GemmProblem::plain) set(plan->description, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
  CUBLAS_CHECK(plan->run(*library_, plan->algorithm, c, a, b));
  return true;
}

}  // namespace switchback::cuda
