#include "kernels/cuda/gemm_plan.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "kernels/cuda/choice_file.h"
#include "kernels/cuda/cublas_check.h"
#include "kernels/cuda/cuda_check.cuh"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/gemm_bf16.cuh"
#include "kernels/cuda/gemm_weight_gradient.cuh"
#include "kernels/cuda/quantize_beside.cuh"
#include "runtime/tensor.h"

namespace switchback::cuda {
namespace {

constexpr int most_algorithms = 24;  // asked of cuBLASLt's heuristic: candidates 0, 1, ...
constexpr int first_tile = 1000;     // candidate first_tile + t is tile t of gemm_bf16
constexpr int own_gradient = 2000;   // gemm_weight_gradient; 0: by parts; 2000 + n: the bias gradient in a
                                     // sweep beside it, on n multiprocessors

cudaDataType_t type_of(DType dtype) { return dtype == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F; }

uint8_t alignment_of(const void* memory) {
  const auto address = reinterpret_cast<uintptr_t>(memory);
  return static_cast<uint8_t>(std::min<uintptr_t>(16, address & (~address + 1)));
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
                int{p.alignment_a}, '.', int{p.alignment_b}, '.', int{p.alignment_c},
                p.alignment_bias < 16 ? concat(".bias", int{p.alignment_bias}) : "");
}

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

ChoiceFile::Exists one_of(const std::vector<int>& candidates) {
  return [&](int c) { return std::find(candidates.begin(), candidates.end(), c) != candidates.end(); };
}

bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  CUDA_CHECK(cudaStreamIsCapturing(stream, &status));
  return status != cudaStreamCaptureStatusNone;
}

// Times candidates 0 ... count-1 on a stream: run(i) says whether it works. First each by itself; those
// within 15 % of the best then in turns, so that all meet the same clock of the chip, and the least median
// wins. Where one run takes more than 4 ms, fewer of them say as much. -1: none works.
int fastest(cudaStream_t stream, int count, const std::function<bool(int)>& run) {
  constexpr float is_long = 4, is_short = 0.1f, loading = 10;  // milliseconds; loading: of a kernel's code
  cudaEvent_t start = nullptr, end = nullptr;
  CUDA_CHECK(cudaEventCreate(&start));
  CUDA_CHECK(cudaEventCreate(&end));
  const auto time = [&](int i, int runs) {  // of one run
    CUDA_CHECK(cudaEventRecord(start, stream));
    for (int r = 0; r < runs; ++r)
      if (!run(i)) return INFINITY;
    CUDA_CHECK(cudaEventRecord(end, stream));
    CUDA_CHECK(cudaEventSynchronize(end));
    float milliseconds = 0;
    CUDA_CHECK(cudaEventElapsedTime(&milliseconds, start, end));
    return milliseconds / static_cast<float>(runs);
  };
  std::vector<std::pair<float, int>> alone;
  float least_alone = INFINITY;
  for (int i = 0; i < count; ++i) {
    float first = time(i, 1);  // warms up, and a candidate may have choices of its own to make
    if (first == INFINITY) continue;
    if (first > is_long + loading) first = time(i, 1);
    if (first > 1.3f * least_alone + loading) continue;
    alone.emplace_back(first > is_long + loading ? first : time(i, 2), i);
    least_alone = std::min(least_alone, alone.back().first);
  }
  int best = -1;
  if (!alone.empty()) {
    std::sort(alone.begin(), alone.end());
    const bool few = least_alone > is_long;
    const int rounds = few ? 3 : 7, runs_of_a_round = few ? 1 : 2;
    const float limit = (few ? 1.05f : 1.15f) * least_alone;
    std::erase_if(alone, [limit](const auto& a) { return a.first > limit; });
    // Under full load the chip lowers its clock after some milliseconds, and that is where it will work. Not
    // worth it for short products.
    float load = least_alone < is_short ? 0 : 50;
    const int runs = few ? 1 : 8;
    for (size_t i = 0; load > 0; ++i)
      load -= time(alone[i % alone.size()].second, runs) * static_cast<float>(runs);
    std::vector<std::vector<float>> times(alone.size());
    for (int round = 0; round < rounds; ++round)
      for (size_t i = 0; i < alone.size(); ++i) times[i].push_back(time(alone[i].second, runs_of_a_round));
    float least = INFINITY;
    for (size_t i = 0; i < alone.size(); ++i) {
      std::sort(times[i].begin(), times[i].end());
      const float median = times[i][times[i].size() / 2];
      if (median < least) least = median, best = alone[i].second;
    }
  }
  CUDA_CHECK(cudaEventDestroy(start));
  CUDA_CHECK(cudaEventDestroy(end));
  return best;
}

// The product as gemm_bf16 would do it; K = 0 where it cannot.
GemmBf16 as_own(const GemmProblem& p, void* c, const void* a, const void* b, const void* bias) {
  if (p.a_transposed || p.accumulate || p.inputs != DType::bf16 || p.output != DType::bf16) return {};
  GemmBf16 own;
  own.M = p.m, own.N = p.n, own.K = p.k;
  own.x = a, own.w = b, own.w_is_k_by_n = !p.b_transposed;
  own.y = c;
  if (p.epilogue == GemmProblem::add_bias) own.bias = bias;
  return own;
}

}  // namespace

struct GemmPlans::Library {
  Device device;
  cudaStream_t stream = nullptr;
  cublasLtHandle_t handle = nullptr;
  void* workspace = nullptr;
  bool tuned = true, only_cublas = false, clears = false;
  ChoiceFile choices;
};

struct GemmPlans::Plan {
  cublasLtMatmulDesc_t description = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;  // cuBLASLt's A is our b
  cublasLtMatmulAlgo_t algorithm{};
  int tile = -1;  // of gemm_bf16, instead
  bool possible = false;
  float beta = 0;
  size_t bytes_of_result = 0;

  ~Plan() {
    for (cublasLtMatrixLayout_t l : {a, b, c})
      if (l) cublasLtMatrixLayoutDestroy(l);
    if (description) cublasLtMatmulDescDestroy(description);
  }
  cublasStatus_t run(const Library& library, const GemmBf16& own, void* to, const void* our_a,
                     const void* our_b) const {
    if (tile >= 0) {
      gemm_bf16(own, tile, library.stream);
      return CUBLAS_STATUS_SUCCESS;
    }
    if (library.clears && beta == 0) CUDA_CHECK(cudaMemsetAsync(to, 0, bytes_of_result, library.stream));
    const float one = 1;
    return cublasLtMatmul(library.handle, description, &one, our_b, a, our_a, b, &beta, to, c, to, c,
                          &algorithm, library.workspace, workspace_bytes, library.stream);
  }
};

GemmPlans::GemmPlans(Device device, cudaStream_t stream, Candidates candidates)
    : library_(std::make_unique<Library>()) {
  library_->device = device;
  library_->stream = stream;
  library_->only_cublas = candidates == only_cublas;
  CUBLAS_CHECK(cublasLtCreate(&library_->handle));
  CUDA_CHECK(cudaMalloc(&library_->workspace, workspace_bytes));
  const char* tuning = std::getenv("SWITCHBACK_GEMM_TUNING");
  library_->tuned = !(tuning && std::strcmp(tuning, "0") == 0);
  if (library_->tuned) library_->choices = ChoiceFile(choice_path(device));
  library_->clears = std::getenv("SWITCHBACK_GEMM_CLEAR") != nullptr;
}

GemmPlans::~GemmPlans() {
  plans_.clear();
  cudaFree(library_->workspace);
  cublasLtDestroy(library_->handle);
}

const GemmPlans::Plan* GemmPlans::make(const GemmProblem& p, void* c, const void* a, const void* b,
                                       const void* bias) {
  auto plan = std::make_unique<Plan>();
  plan->beta = p.accumulate ? 1.0f : 0.0f;
  plan->bytes_of_result = static_cast<size_t>(p.m * p.n) * size_of(p.output);
  CUBLAS_CHECK(cublasLtMatmulDescCreate(&plan->description, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  set(plan->description, CUBLASLT_MATMUL_DESC_TRANSA, p.b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(plan->description, CUBLASLT_MATMUL_DESC_TRANSB, p.a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
  if (p.epilogue != GemmProblem::plain) {
    set(plan->description, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    set(plan->description, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, static_cast<int32_t>(type_of(p.inputs)));
    set(plan->description, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
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
  cublasLtMatmulHeuristicResult_t found[most_algorithms];
  int count = 0;
  const cublasStatus_t status =
      cublasLtMatmulAlgoGetHeuristic(library_->handle, plan->description, plan->a, plan->b, plan->c, plan->c,
                                     preference, most_algorithms, found, &count);
  cublasLtMatmulPreferenceDestroy(preference);
  if (status != CUBLAS_STATUS_SUCCESS) count = 0;
  // The heuristic's order is good; trials of products that take 10 ms would take half a minute a layer.
  if (static_cast<double>(p.m) * static_cast<double>(p.n) * static_cast<double>(p.k) > 3e12)
    count = std::min(count, 8);

  std::vector<int> candidates;
  for (int i = 0; i < count; ++i) candidates.push_back(i);
  const GemmBf16 own = as_own(p, c, a, b, bias);
  for (int tile = 0; tile < gemm_bf16_tiles() && !library_->only_cublas; ++tile)
    if (gemm_bf16_has(own, tile)) candidates.push_back(first_tile + tile);
  plan->possible = !candidates.empty();
  const auto take = [&](int candidate) {
    plan->tile = candidate >= first_tile ? candidate - first_tile : -1;
    if (plan->tile < 0) plan->algorithm = found[candidate].algo;
  };
  if (plan->possible) take(candidates[0]);

  const std::string name = word_of(p) + (library_->only_cublas ? "-cublas" : "");
  if (const auto chosen = library_->choices.find(name, one_of(candidates))) {
    take(*chosen);
  } else if (candidates.size() > 1 && library_->tuned && !is_capturing(library_->stream)) {
    // c is about to be overwritten anyway, unless the product is added to it.
    const Tensor spare = p.accumulate ? Tensor({p.m, p.n}, p.output, library_->device) : Tensor();
    if (p.accumulate)
      CUDA_CHECK(cudaMemsetAsync(spare.data(), 0, static_cast<size_t>(spare.size()) * size_of(p.output),
                                 library_->stream));
    void* to = p.accumulate ? spare.data() : c;
    const int best = fastest(library_->stream, static_cast<int>(candidates.size()), [&](int i) {
      take(candidates[i]);
      return plan->run(*library_, own, to, a, b) == CUBLAS_STATUS_SUCCESS;
    });
    plan->possible = best >= 0;
    if (plan->possible) {
      take(library_->choices.add(name, candidates[best], one_of(candidates)));
    }
  }
  return plans_.emplace(p, std::move(plan)).first->second.get();
}

bool GemmPlans::multiply(GemmProblem p, void* c, const void* a, const void* b, const void* bias) {
  p.alignment_a = alignment_of(a);
  p.alignment_b = alignment_of(b);
  p.alignment_c = alignment_of(c);
  p.alignment_bias = bias ? alignment_of(bias) : 16;
  const auto known = plans_.find(p);
  const Plan* plan = known != plans_.end() ? known->second.get() : make(p, c, a, b, bias);
  if (!plan->possible) return false;
  if (plan->tile < 0 && p.epilogue != GemmProblem::plain)
    set(plan->description, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
  CUBLAS_CHECK(plan->run(*library_, as_own(p, c, a, b, bias), c, a, b));
  return true;
}

bool GemmPlans::multiply(const GemmBf16& p) {
  if (library_->only_cublas || gemm_bf16_choose(p) < 0) return false;
  if (p.M == 0) return true;
  const std::string name = concat(p.M, 'x', p.N, 'x', p.K, p.w_is_k_by_n ? "NN" : "NT", "-after",
                                  int(p.after), p.second ? "-second" : "");
  const auto known = candidates_.find(name);
  int tile = known == candidates_.end() ? -1 : known->second - first_tile;
  if (tile < 0) {
    tile = gemm_bf16_choose(p);
    const auto exists = [&](int candidate) { return gemm_bf16_has(p, candidate - first_tile); };
    if (const auto chosen = library_->choices.find(name, exists)) {
      tile = *chosen - first_tile;
    } else if (library_->tuned && p.y != p.operand && !is_capturing(library_->stream)) {
      const int best = fastest(library_->stream, gemm_bf16_tiles(), [&](int i) {
        if (!gemm_bf16_has(p, i)) return false;
        gemm_bf16(p, i, library_->stream);
        return true;
      });
      if (best >= 0) tile = library_->choices.add(name, first_tile + best, exists) - first_tile;
    }
    candidates_.emplace(name, first_tile + tile);
  }
  gemm_bf16(p, tile, library_->stream);
  return true;
}

bool GemmPlans::weight_gradient(const GemmWeightGradient& p,
                                const std::function<void(const Sink&, const Sink&)>& by_parts,
                                const std::function<bool(const GemmWeightGradient&)>& sums_beside) {
  if (library_->only_cublas || !gemm_weight_gradient_serves(p, workspace_bytes)) return false;
  const auto run = [&](const GemmWeightGradient& a) {
    gemm_weight_gradient(a, library_->workspace, workspace_bytes, library_->stream);
  };
  // The bias gradient on 1/32 of the chip takes as long as the product for about 2048 channels.
  const int beside = static_cast<int>(std::clamp<int64_t>(8192 / p.K, 2, 16)) / 2 * 2;
  std::vector<int> candidates = {own_gradient, 0};
  if (p.dbias && multiprocessor_count() >= least_multiprocessors)
    candidates.insert(candidates.end(), {own_gradient + beside, own_gradient + beside + 2});
  const std::string name = concat("gradient-", p.M, 'x', p.N, 'x', p.K, p.dbias ? "-dbias" : "");
  Tensor dw, dbias;  // what is added to must not be added to in trials
  GemmWeightGradient trial = p;
  const int candidate = choose(name, candidates, [&](int candidate) {
    if (p.accumulate_dw && !dw.defined()) dw = Tensor({p.N, p.K}, DType::f32, library_->device);
    if (p.accumulate_dbias && !dbias.defined()) dbias = Tensor({p.N}, DType::f32, library_->device);
    if (p.accumulate_dw) trial.dw = static_cast<float*>(dw.data());
    if (p.accumulate_dbias) trial.dbias = static_cast<float*>(dbias.data());
    trial.left = std::max(0, candidate - own_gradient);
    if (trial.left > 0) return sums_beside(trial);
    if (candidate == own_gradient) {
      run(trial);
    } else {
      by_parts({{trial.dw, {p.N, p.K}, DType::f32, library_->device}, p.accumulate_dw},
               {{trial.dbias, {p.N}, DType::f32, library_->device}, p.accumulate_dbias});
    }
    return true;
  });
  if (candidate == 0) return false;
  GemmWeightGradient chosen = p;
  chosen.left = candidate - own_gradient;
  if (chosen.left > 0) return sums_beside(chosen);
  run(p);
  return true;
}

bool GemmPlans::weight_gradient_beside(const GemmWeightGradient& p, const std::function<void()>& begin) {
  if (library_->only_cublas || !gemm_weight_gradient_serves(p, workspace_bytes)) return false;
  begin();
  gemm_weight_gradient(p, library_->workspace, workspace_bytes, library_->stream);
  return true;
}

int GemmPlans::choose(const std::string& name, const std::vector<int>& candidates,
                      const std::function<bool(int)>& run) {
  const auto known = candidates_.find(name);
  if (known != candidates_.end()) return known->second;
  int candidate = candidates[0];
  if (const auto chosen = library_->choices.find(name, one_of(candidates))) {
    candidate = *chosen;
  } else if (library_->tuned && !is_capturing(library_->stream)) {
    const int best = fastest(library_->stream, static_cast<int>(candidates.size()),
                             [&](int i) { return run(candidates[static_cast<size_t>(i)]); });
    if (best >= 0)
      candidate = library_->choices.add(name, candidates[static_cast<size_t>(best)], one_of(candidates));
  }
  candidates_.emplace(name, candidate);
  return candidate;
}

}  // namespace switchback::cuda
