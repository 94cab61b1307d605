// wgmma_bf16.cuh: the warpgroup matrix product of Hopper (wgmma.cuh) in the forms that attention uses: bf16
// operands, f32 sums, A from shared memory or from registers. Warp w owns rows 16 w ... 16 w + 15 of the
// result, and its registers hold exactly the fragments of mma.cuh: a[4] of one A, c[n][4] of the n-th (16, 8)
// tile of C.
//
// The product runs by itself once issued:
//   wgmma_fence()            before the first product that reads or writes registers written by ordinary code
//   multiply_rows, add_rows  any number; those on the same accumulators run in order
//   wgmma_commit()           closes a group
//   wgmma_wait<n>()          until at most the n youngest groups still run; then hold(c) for every c read
//
// Operands in shared memory are rows of 128 (or 32) bytes, 8 of them next to one another forming the
// swizzle's atom, as the bulk tensor copy writes them: chunk c of 16 bytes of row r stands in place c ^ (r %
// 8) (or c ^ (r / 4 % 2)).
#pragma once

#include <cstdint>

#include "kernels/cuda/ptx/wgmma.cuh"

namespace switchback::cuda {

using ptx::wgmma_commit, ptx::wgmma_fence, ptx::wgmma_wait;

// 64 columns (128 bytes) or 16 columns (32 bytes) of rows from `address` on, a multiple of 8 rows from the
// matrix's start; for a step of 16 columns within the 64 add 32 bytes. The only stride that is read is the
// one between groups of 8 rows, whether rows count as N or, transposed, as K. The 64 columns are what
// wgmma_descriptor gives; it masks before it shifts, and attention's machine code is shorter this way.
__device__ __forceinline__ uint64_t describe_64_columns(uint32_t address) {
  return ((address >> 4) & 0x3fff) | (1ull << 16) | (uint64_t{1024 >> 4} << 32) | (1ull << 62);
}
__device__ __forceinline__ uint64_t describe_16_columns(uint32_t address) {
  return ((address >> 4) & 0x3fff) | (1ull << 16) | (uint64_t{256 >> 4} << 32) | (3ull << 62);
}

// The compiler sees neither that a fence wants registers written before it nor that a wait changes them. This
// pins the place: hold(c) before a fence keeps writes of c above it, hold(c) after a wait keeps reads of c
// below it.
template <int tiles>
__device__ __forceinline__ void hold(float (&c)[tiles][4]) {
#pragma unroll
  for (int n = 0; n < tiles; ++n) {
    asm volatile("" : "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])::"memory");
  }
}
template <int tiles>
__device__ __forceinline__ void hold(uint32_t (&a)[tiles][4]) {
#pragma unroll
  for (int n = 0; n < tiles; ++n) {
    asm volatile("" : "+r"(a[n][0]), "+r"(a[n][1]), "+r"(a[n][2]), "+r"(a[n][3])::"memory");
  }
}

#define FRESH(n) "=f"(c[first + n][0]), "=f"(c[first + n][1]), "=f"(c[first + n][2]), "=f"(c[first + n][3])
#define ACCUMULATOR(n) \
  "+f"(c[first + n][0]), "+f"(c[first + n][1]), "+f"(c[first + n][2]), "+f"(c[first + n][3])

// c (64, 64) += (fresh: =) A (64, 16) · B (16, 64), both rows of matrices in shared memory.
__device__ __forceinline__ void multiply_rows_fresh(float (&c)[8][4], uint64_t a, uint64_t b) {
  constexpr int first = 0;
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
      " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "%32, %33, 0, 1, 1, 0, 0;"
      : FRESH(0), FRESH(1), FRESH(2), FRESH(3), FRESH(4), FRESH(5), FRESH(6), FRESH(7)
      : "l"(a), "l"(b));
}
__device__ __forceinline__ void multiply_rows(float (&c)[8][4], uint64_t a, uint64_t b) {
  constexpr int first = 0;
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
      " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "%32, %33, 1, 1, 1, 0, 0;"
      : ACCUMULATOR(0), ACCUMULATOR(1), ACCUMULATOR(2), ACCUMULATOR(3), ACCUMULATOR(4), ACCUMULATOR(5),
        ACCUMULATOR(6), ACCUMULATOR(7)
      : "l"(a), "l"(b));
}

// c (64, 16) += (fresh: =) A (64, 16) · B (16, 16), both rows of matrices in shared memory.
__device__ __forceinline__ void multiply_rows_fresh(float (&c)[2][4], uint64_t a, uint64_t b) {
  constexpr int first = 0;
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7}, "
      "%8, %9, 0, 1, 1, 0, 0;"
      : FRESH(0), FRESH(1)
      : "l"(a), "l"(b));
}
__device__ __forceinline__ void multiply_rows(float (&c)[2][4], uint64_t a, uint64_t b) {
  constexpr int first = 0;
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7}, "
      "%8, %9, 1, 1, 1, 0, 0;"
      : ACCUMULATOR(0), ACCUMULATOR(1)
      : "l"(a), "l"(b));
}

// sum (64, 64) += p (64, 16) from registers · B (16, 64), B transposed: rows of X. Its tiles are c[first] ...
template <int first, int tiles>
__device__ __forceinline__ void add_rows_64(float (&c)[tiles][4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
      " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
      : ACCUMULATOR(0), ACCUMULATOR(1), ACCUMULATOR(2), ACCUMULATOR(3), ACCUMULATOR(4), ACCUMULATOR(5),
        ACCUMULATOR(6), ACCUMULATOR(7)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// sum (64, 16) += p (64, 16) from registers · B (16, 16), B transposed: rows of X. Its tiles are c[first] ...
template <int first, int tiles>
__device__ __forceinline__ void add_rows_16(float (&c)[tiles][4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7}, "
      "{%8, %9, %10, %11}, %12, 1, 1, 1, 1;"
      : ACCUMULATOR(0), ACCUMULATOR(1)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#undef FRESH
#undef ACCUMULATOR

}  // namespace switchback::cuda
