// cuda_check.cuh: a failed CUDA call becomes an Error that names the call, the place and CUDA's own words.
#pragma once

#include <cuda_runtime.h>

#include "runtime/check.h"

#define CUDA_CHECK(call)                                                                      \
  do {                                                                                        \
    const cudaError_t cuda_check_error = (call);                                              \
    CHECK(cuda_check_error == cudaSuccess, #call ": ", cudaGetErrorString(cuda_check_error)); \
  } while (0)
