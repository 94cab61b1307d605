// gemm_fp8.h: products of 8-bit floats on Hopper, through cuBLASLt with a scale for each row of both
// operands.
//
//   y (M, N) bf16 = scale_a[m] scale_b[n] Σ_k a[m, k] b[n, k] + bias[n],   a (M, K), b (N, K) codes
//
// This is the library's outer-vector scaling, which it has for sm_90 alone and only with vectors: one scale
// for a whole tensor comes as N copies. K, N and M are multiples of 16.
// The tensor core keeps some 14 bits of a sum of 8-bit floats. `fast` leaves it at that, as is usual in
// forward passes; else the library adds partial sums in f32 on the way. (int8 sums are exact: kernels of our
// own.)
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/formats.h"

namespace switchback::cuda {

class CudaKernels;

// False, and nothing done, when the library has no algorithm for it.
bool multiply_fp8(const CudaKernels& k, View y, const CodeView& a, const CodeView& b, CView bias, bool fast);

}  // namespace switchback::cuda
