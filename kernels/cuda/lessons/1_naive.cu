// Rung 1: one thread, two elements of y, and nothing clever.
//
// A thread walks along K, four bytes at a time (dp4a multiplies four pairs and adds them). Every operand byte
// is fetched from L1 or L2 for each use: a warp asks for one row of x and 64 rows of w, each 4 bytes wide, so
// most of each 32-byte sector fetched is thrown away. The tensor cores do not work at all. It defines what
// the other rungs must equal.
#include "kernels/cuda/lessons/lesson.cuh"

namespace switchback::lessons {
namespace {

__global__ void naive_kernel(Problem p) {
  const int n = 2 * (blockIdx.x * blockDim.x + threadIdx.x);
  const int m = blockIdx.y * blockDim.y + threadIdx.y;
  if (m >= p.M || n >= p.N) return;
  const int* x = reinterpret_cast<const int*>(p.x + static_cast<int64_t>(m) * p.K);
  const int* w0 = reinterpret_cast<const int*>(p.w + static_cast<int64_t>(n) * p.K);
  const int* w1 = w0 + p.K / 4;
  int a = 0, b = 0;
  for (int k = 0; k < p.K / 4; ++k) {
    a = __dp4a(x[k], w0[k], a);
    b = __dp4a(x[k], w1[k], b);
  }
  write_pair(p, m, n, a, b);
}

}  // namespace

void naive(const Problem& p, cudaStream_t stream) {
  const dim3 threads(32, 8);
  naive_kernel<<<dim3(ceil_div(p.N, 64), ceil_div(p.M, 8)), threads, 0, stream>>>(p);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace switchback::lessons
