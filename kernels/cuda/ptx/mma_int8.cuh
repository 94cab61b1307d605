// mma_int8.cuh: the int8 tensor core instruction of Ampere and later, one warp: d (16 x 8, s32) += a (16 x
// 32) b (32 x 8); and cp.async, the 16-byte copy from global to shared memory that goes around the registers.
//
// Fragments, lane l:  a[0], a[1]: rows l/4 and l/4 + 8, bytes 4 (l mod 4) .. +3 of the first 16 of K; a[2],
// a[3]: the same of the second 16; b0, b1: column l/4, likewise; d[0], d[1]: row l/4, columns 2 (l mod 4),
// +1; d[2], d[3]: row l/4 + 8.
#pragma once

#include <cstdint>

namespace switchback::ptx {

__device__ __forceinline__ void mma_s8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, "
      "%1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Copies `bytes` (16, or 0: then 16 zero bytes are written) to shared memory.
__device__ __forceinline__ void copy_async_16(uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace switchback::ptx
