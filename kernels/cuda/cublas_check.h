// cublas_check.h: a failed call of cuBLASLt becomes an Error; attributes are set by value.
#pragma once

#include <cublasLt.h>

#include "runtime/check.h"

#define CUBLAS_CHECK(call)                                          \
  do {                                                              \
    const cublasStatus_t cublas_check_status = (call);              \
    CHECK(cublas_check_status == CUBLAS_STATUS_SUCCESS, #call ": ", \
          cublasLtGetStatusString(cublas_check_status));            \
  } while (0)

namespace switchback::cuda {

template <class T>
void set(cublasLtMatmulDesc_t description, cublasLtMatmulDescAttributes_t attribute, const T& value) {
  CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(description, attribute, &value, sizeof(value)));
}
template <class T>
void set(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute,
         const T& value) {
  CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)));
}

}  // namespace switchback::cuda
