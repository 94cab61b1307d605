// matrix_fragments.cuh: ldmatrix and stmatrix: four 8 x 8 matrices of 16-bit elements between shared memory
// and a warp.
//
// Lane 8q + r names the address of row r of matrix q (16 bytes). In registers, lane l holds of each matrix
// the two elements of row l/4 and columns 2 (l mod 4), +1, packed in 32 bits: the layout of the accumulators
// of mma and wgmma. 8-bit operands travel the same way, two per 16-bit element.
#pragma once

#include <cstdint>

#include "kernels/cuda/ptx/mbarrier.cuh"

namespace switchback::ptx {

__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], uint32_t row_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row_address)
               : "memory");
}

__device__ __forceinline__ void store_matrices(uint32_t row_address, const uint32_t (&from)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row_address),
               "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3])
               : "memory");
}

}  // namespace switchback::ptx
