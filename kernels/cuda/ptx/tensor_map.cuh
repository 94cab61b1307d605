// tensor_map.cuh: host side of the bulk tensor copy engine: describes a row-major matrix and the box to be
// copied.
//
// The encoder is a driver function; it is looked up at run time so that nothing needs to link against
// libcuda.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/cuda_check.cuh"

namespace switchback::ptx {

enum class Swizzle { none, bytes_64, bytes_128 };

// matrix (rows, columns) of elements of 1 (bytes) or 2 (bf16) bytes, row-major, `columns` contiguous. Its
// first byte lies on a 16-byte border and a row is a multiple of 16 bytes long. A box row is at most as wide
// as the swizzle.
inline CUtensorMap make_tensor_map(const void* matrix, int64_t rows, int64_t columns, int element_bytes,
                                   int box_rows, int box_columns, Swizzle swizzle) {
  using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                              const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                              CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  static const Encode encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault,
                                                &found));
    CHECK(found == cudaDriverEntryPointSuccess, "the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<Encode>(function);
  }();
  CHECK(reinterpret_cast<uintptr_t>(matrix) % 16 == 0 && columns * element_bytes % 16 == 0, "a matrix of ",
        rows, " x ", columns, " cannot be copied in bulk: rows must be multiples of 16 bytes");
  CHECK(box_rows <= 256 && box_columns <= 256, "box of ", box_rows, " x ", box_columns);
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t row_pitch[1] = {static_cast<cuuint64_t>(columns) * element_bytes};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(box_columns), static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t element_strides[2] = {1, 1};
  CUtensorMap map;
  const CUresult result =
      encode(&map, element_bytes == 1 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2,
             const_cast<void*>(matrix), sizes, row_pitch, box, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE,
             swizzle == Swizzle::bytes_128  ? CU_TENSOR_MAP_SWIZZLE_128B
             : swizzle == Swizzle::bytes_64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                            : CU_TENSOR_MAP_SWIZZLE_NONE,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  CHECK(result == CUDA_SUCCESS, "cuTensorMapEncodeTiled failed with ", static_cast<int>(result),
        " for a matrix of ", rows, " x ", columns, " and a box of ", box_rows, " x ", box_columns);
  return map;
}

}  // namespace switchback::ptx
