// gemm_weight_gradient.cuh: the weight gradient of a linear layer and the bias gradient beside it, in one
// kernel.
//
//   dw (N, K) f32 = [dw +] dyᵀ x,   dbias (N) f32 = [dbias +] Σ_m dy[m, :]       dy (M, N), x (M, K) bf16
//
// The sum runs over M, tens of thousands of tokens, and dw is small: a few tiles for each multiprocessor, and
// what is left over would keep a part of the chip busy for as long as a full round. So those tiles are cut
// along M into parts, each with sums of its own (in a workspace), which a second kernel adds in order: the
// same bits every time. The bias gradient costs no pass over dy: the tensor cores multiply dyᵀ, which they
// hold anyway, with a matrix of ones as well, on one tile of each row.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace switchback::cuda {

struct GemmWeightGradient {
  int64_t M = 0, N = 0, K = 0;
  const void* dy = nullptr;
  const void* x = nullptr;
  float* dw = nullptr;
  float* dbias = nullptr;  // optional
  bool accumulate_dw = false, accumulate_dbias = false;
  int left = 0;  // multiprocessors left to a kernel that runs beside this one
};

// Whether the current device is a Hopper, rows are multiples of 16 bytes, matrices start on 16-byte borders,
// and the sums of rows have room in the workspace.
bool gemm_weight_gradient_serves(const GemmWeightGradient& a, size_t workspace_bytes);
void gemm_weight_gradient(const GemmWeightGradient& a, void* workspace, size_t workspace_bytes,
                          cudaStream_t stream);

}  // namespace switchback::cuda
