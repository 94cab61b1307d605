// token_sort.cuh: the places of a batch's tokens, sorted by token, and by place within a token.
//
// A radix sort, least significant byte first. Each pass is stable and counts with integers only, so the order
// is unique and the same every time; sums that follow it are reproducible.
#pragma once

#include "kernels/cuda/cuda_kernels.h"

namespace switchback::cuda {

struct SortedToken {
  int32_t token;  // numbers outside [0, vocabulary) become `vocabulary`
  int32_t place;  // index into tokens
};

// (count) SortedToken, in bytes.  tokens (count) on the device
Tensor sort_tokens(const CudaKernels& k, const int32_t* tokens, int64_t count, int64_t vocabulary);

}  // namespace switchback::cuda
