// gemm_plan.h: matrix products through cuBLASLt or the kernel of gemm_bf16.cuh, whichever is faster, with
// everything that can be prepared prepared once.
//
//   c (m, n) = op(a) op(b) [+ c] [+ bias],   row-major
//
// cuBLASLt thinks in columns. A row-major matrix is its own transpose in columns, so cᵀ = op(b)ᵀ op(a)ᵀ: the
// operands change places, nothing is copied. Its bias then runs along our columns (n), which is what a linear
// layer wants. (Its "gradient of B's bias" would sum dy within dw = dyᵀ x, but slows that product by 40 %:
// more than a sweep over dy takes.)
//
// A plan (descriptors, layouts, algorithm) is made on the first product of its shape, types, epilogue and
// alignment. The candidates are the first algorithms of cuBLASLt's heuristic and, on Hopper, the tiles of
// gemm_bf16; they are timed once on the real operands, in turns, and the fastest is taken. The choice is
// written to a file (choice_file.h) and read from there by every later process: algorithms differ in the
// order of their sums, and two runs should give the same bits. The file is $SWITCHBACK_GEMM_CACHE, or in
// $XDG_CACHE_HOME (~/.cache) switchback/gemm-<GPU>-<version of cuBLASLt>.txt. SWITCHBACK_GEMM_TUNING=0 takes
// cuBLASLt's first candidate, untimed. Candidates whose partial sums race are never asked for: split-k only
// with partials in the workspace, added in order. SWITCHBACK_GEMM_CLEAR=1 zeroes results before cuBLASLt
// writes them: its kernels store through TMA, which compute-sanitizer's initcheck does not see.
//
// Sums are f32; f32 operands are multiplied in full f32, not in TF32.
#pragma once

#include <cuda_runtime_api.h>

#include <compare>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "runtime/view.h"

namespace switchback::cuda {

struct GemmProblem {
  enum Epilogue : uint8_t { plain, add_bias };

  int64_t m = 0, n = 0, k = 0;
  bool a_transposed = false, b_transposed = false;  // a lies in memory as (k, m), b as (n, k)
  DType inputs = DType::f32;                        // f32, bf16
  DType output = DType::f32;
  Epilogue epilogue = plain;  // a bias is of the inputs' type
  bool accumulate = false;
  // Bytes, set by multiply(); an absent bias is aligned.
  uint8_t alignment_a = 16, alignment_b = 16, alignment_c = 16, alignment_bias = 16;

  auto operator<=>(const GemmProblem&) const = default;
};

struct GemmBf16;
struct GemmWeightGradient;

class GemmPlans {
 public:
  static constexpr size_t workspace_bytes = size_t{64} << 20;
  enum Candidates : uint8_t { all, only_cublas };

  GemmPlans(Device device, cudaStream_t stream, Candidates candidates = all);
  ~GemmPlans();
  GemmPlans(const GemmPlans&) = delete;

  // False, and nothing done, when nobody has an algorithm for the problem.
  bool multiply(GemmProblem problem, void* c, const void* a, const void* b, const void* bias = nullptr);

  // A product with an epilogue that cuBLASLt does not have: by the fastest tile of gemm_bf16. False, and
  // nothing done, when none serves.
  bool multiply(const GemmBf16& problem);

  // A weight gradient by the kernel of our own, or with the bias gradient in a sweep beside it on
  // problem.left multiprocessors: sums_beside does that, or returns false where it cannot. False, and nothing
  // done, when neither serves or by_parts(dw, dbias), the other way, is faster.
  bool weight_gradient(const GemmWeightGradient& problem,
                       const std::function<void(const Sink& dw, const Sink& dbias)>& by_parts,
                       const std::function<bool(const GemmWeightGradient&)>& sums_beside);

  // The same beside another kernel, to which problem.left multiprocessors are left: begin() launches that one
  // elsewhere. False, and nothing done, when the kernel of our own does not serve.
  bool weight_gradient_beside(const GemmWeightGradient& problem, const std::function<void()>& begin);

  // Which of the candidates is the fastest, timed once and remembered like a plan: run(candidate) does it, or
  // returns false where it cannot. Untimed it is the first.
  int choose(const std::string& name, const std::vector<int>& candidates,
             const std::function<bool(int)>& run);

 private:
  struct Plan;
  struct Library;
  const Plan* make(const GemmProblem& problem, void* c, const void* a, const void* b, const void* bias);
  std::unique_ptr<Library> library_;
  std::map<GemmProblem, std::unique_ptr<Plan>> plans_;
  std::map<std::string, int> candidates_;  // taken for products of our own
};

}  // namespace switchback::cuda
