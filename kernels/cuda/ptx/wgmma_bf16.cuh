// wgmma_bf16.cuh: the warpgroup matrix product of Hopper (sm_90a), in the form that attention uses:
// C (64, N) f32 += A (64, 16) bf16 · B (16, N) bf16, A from registers or shared memory, B from shared memory.
//
// Four warps (a warpgroup) work together; warp w owns rows 16 w ... 16 w + 15, and its registers hold exactly the
// fragments of mma.cuh: a[4] of one A, c[n][4] of the n-th (16, 8) tile of C. B never passes through registers.
//
// The product runs by itself once issued:
//   warpgroup_fence()        before the first product that reads or writes registers written by ordinary code
//   wgmma<...>(...)          any number; those on the same accumulators run in order
//   commit_products()        closes a group
//   wait_for_products<n>()   until at most the n youngest groups still run; then hold(c) for every c read
//
// B's layout, without swizzle: 8 rows x 16 bytes are 128 bytes in one piece ("core matrix"); a matrix X (rows, D) in
// shared memory is stored by chunks of 8 columns, [chunk][row][8], so the core matrices of one chunk follow one
// another and the next chunk starts `chunk_pitch` bytes later. ldmatrix and cp.async meet no bank conflicts if
// chunk_pitch is an odd multiple of 16.
#pragma once

#include <cstdint>

namespace switchback::cuda {

// Where B stands. not transposed: B = X[row0 ...][16 columns]ᵀ, N runs over rows; transposed: B = X[16 rows][all
// columns]. Both start at the address of X[row0][first column]; what differs is which of the two strides the
// instruction calls leading.
template <bool transposed>
__device__ __forceinline__ uint64_t describe(uint32_t address, uint32_t chunk_pitch) {
  const uint64_t leading = transposed ? 128 : chunk_pitch, stride = transposed ? chunk_pitch : 128;
  return ((address >> 4) & 0x3fff) | ((leading >> 4) << 16) | ((stride >> 4) << 32);
}

__device__ __forceinline__ void warpgroup_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int still_running>
__device__ __forceinline__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(still_running) : "memory");
}
// The compiler sees neither that a fence wants registers written before it nor that a wait changes them. This pins
// the place: hold(c) before a fence keeps writes of c above it, hold(c) after a wait keeps reads of c below it.
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
// Ordinary writes to shared memory (cp.async too) become visible to wgmma: each writing thread, before the barrier.
__device__ __forceinline__ void publish_shared_memory() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// keep = 0: C = A B instead of C += A B. One overload for each N = 8 x tiles of c.
#define ACCUMULATOR(n) "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])

template <bool transposed>
__device__ __forceinline__ void wgmma(float (&c)[2][4], const uint32_t (&a)[4], uint64_t b, int keep) {
  asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %13, 0; wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7}, "
        "{%8, %9, %10, %11}, %12, p, 1, 1, %14;}"
        : ACCUMULATOR(0), ACCUMULATOR(1)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep), "n"(transposed ? 1 : 0));
}

template <bool transposed>
__device__ __forceinline__ void wgmma(float (&c)[8][4], const uint32_t (&a)[4], uint64_t b, int keep) {
  asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %37, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
        " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "{%32, %33, %34, %35}, %36, p, 1, 1, %38;}"
        : ACCUMULATOR(0), ACCUMULATOR(1), ACCUMULATOR(2), ACCUMULATOR(3), ACCUMULATOR(4),
          ACCUMULATOR(5), ACCUMULATOR(6), ACCUMULATOR(7)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep), "n"(transposed ? 1 : 0));
}

template <bool transposed>
__device__ __forceinline__ void wgmma(float (&c)[10][4], const uint32_t (&a)[4], uint64_t b, int keep) {
  asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %45, 0; wgmma.mma_async.sync.aligned.m64n80k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
        " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
        " %32, %33, %34, %35, %36, %37, %38, %39}, "
        "{%40, %41, %42, %43}, %44, p, 1, 1, %46;}"
        : ACCUMULATOR(0), ACCUMULATOR(1), ACCUMULATOR(2), ACCUMULATOR(3), ACCUMULATOR(4),
          ACCUMULATOR(5), ACCUMULATOR(6), ACCUMULATOR(7), ACCUMULATOR(8), ACCUMULATOR(9)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep), "n"(transposed ? 1 : 0));
}
// The same with A (64, 16) from shared memory too; A and B as rows of matrices, neither transposed.
__device__ __forceinline__ void wgmma(float (&c)[2][4], uint64_t a, uint64_t b, int keep) {
  asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %10, 0; wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7}, "
        "%8, %9, p, 1, 1, 0, 0;}"
        : ACCUMULATOR(0), ACCUMULATOR(1)
        : "l"(a), "l"(b), "r"(keep));
}

__device__ __forceinline__ void wgmma(float (&c)[8][4], uint64_t a, uint64_t b, int keep) {
  asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %34, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
        " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "%32, %33, p, 1, 1, 0, 0;}"
        : ACCUMULATOR(0), ACCUMULATOR(1), ACCUMULATOR(2), ACCUMULATOR(3), ACCUMULATOR(4),
          ACCUMULATOR(5), ACCUMULATOR(6), ACCUMULATOR(7)
        : "l"(a), "l"(b), "r"(keep));
}
#undef ACCUMULATOR

}  // namespace switchback::cuda
