// wgmma.cuh: the tensor core instruction of Hopper. One warpgroup (4 warps, 128 threads) multiplies
//   d (64 x N, s32, in registers) += a (64 x 32, s8, in shared memory) * b (N x 32, s8, in shared memory)^T
//   d (64 x N, f32)               += a (64 x 16, bf16)                 * b (N x 16, bf16)^T
// asynchronously: issue several, commit them as a group, wait for the group.
//
// Operands lie in shared memory as the copy engine's 128-byte swizzle leaves them: rows of 128 bytes, eight
// rows to an atom of 1024 bytes, the 16-byte pieces of row r permuted by XOR with r mod 8. A descriptor names
// the first byte.
//   Major::k   K runs along a row: the next 32 bytes of K are 32 bytes further, for the swizzle acts on
//              address bits
//   Major::mn  (bf16 alone) M (of a) or N (of b) runs along a row of 64, a row for each k: the next 16 of K
//              are 16 rows further; the next 64 of M or N are another such band, `band_bytes` away
//
// Accumulators: warp w of the warpgroup holds rows 16 w .. 16 w + 15; lane l, of each group j of 8 columns:
//   d[4j],   d[4j+1]: row l/4,     columns 8 j + 2 (l mod 4), +1
//   d[4j+2], d[4j+3]: row l/4 + 8, the same columns.
//
// Between the issue and the wait nothing may touch the accumulators, not even a move: the compiler would
// serialise the products (it says so: C7510).
#pragma once

#include <cstdint>

#include "kernels/cuda/ptx/mbarrier.cuh"

namespace switchback::ptx {

enum class Major { k, mn };

// Descriptor of a tile in 128-byte swizzle that starts at `tile` (on a border of 1024 bytes). band_bytes:
// from one band of 64 columns to the next, for Major::mn; it has no meaning for Major::k.
__device__ __forceinline__ uint64_t wgmma_descriptor(const void* tile, uint32_t band_bytes = 16) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  constexpr uint64_t kAtomStride = uint64_t{1024 >> 4} << 32;  // from one group of eight rows to the next
  const uint64_t band_stride = uint64_t{band_bytes >> 4} << 16;
  return kSwizzle128 | kAtomStride | band_stride | ((shared_address(tile) & 0x3ffff) >> 4);
}

// The same tile, `bytes` further on (a multiple of 16).
__device__ __forceinline__ uint64_t wgmma_advance(uint64_t descriptor, uint32_t bytes) {
  return descriptor + (bytes >> 4);
}

// Before the first wgmma, and whenever ordinary instructions have written its registers.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most `kPending` groups of this warpgroup are unfinished.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Ties registers to this point of the program: they are not read before it. Put it after the wait.
template <int kCount>
__device__ __forceinline__ void wgmma_results(int (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(d[i])::"memory");
}
template <int kCount>
__device__ __forceinline__ void wgmma_results(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// d = a b^T (add = 0) or d += a b^T (add = 1); N is twice the number of registers:
//   wgmma_s8(int (&d)[N/2], a, b, add)
//   wgmma_bf16<major of a, major of b>(float (&d)[N/2], a, b, add)
//
// The registers must be spelled out in the instruction's text, hence the lists below: numbers of operands,
// and the operands themselves.
#define SWITCHBACK_N8 "%0, %1, %2, %3"
#define SWITCHBACK_N64                                                     \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SWITCHBACK_N128                                                              \
  SWITCHBACK_N64                                                                     \
  ", "                                                                               \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SWITCHBACK_N160 \
  SWITCHBACK_N128       \
  ", "                  \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define SWITCHBACK_N192 \
  SWITCHBACK_N160       \
  ", "                  \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define SWITCHBACK_N256                                                                          \
  SWITCHBACK_N192                                                                                \
  ", "                                                                                           \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

#define SWITCHBACK_D4(type, i) type(d[i]), type(d[i + 1]), type(d[i + 2]), type(d[i + 3])
#define SWITCHBACK_D16(type, i) \
  SWITCHBACK_D4(type, i), SWITCHBACK_D4(type, i + 4), SWITCHBACK_D4(type, i + 8), SWITCHBACK_D4(type, i + 12)
#define SWITCHBACK_D32(type, i) SWITCHBACK_D16(type, i), SWITCHBACK_D16(type, i + 16)
#define SWITCHBACK_D64(type, i) SWITCHBACK_D32(type, i), SWITCHBACK_D32(type, i + 32)
#define SWITCHBACK_D80(type, i) SWITCHBACK_D64(type, i), SWITCHBACK_D16(type, i + 64)
#define SWITCHBACK_D96(type, i) SWITCHBACK_D64(type, i), SWITCHBACK_D32(type, i + 64)
#define SWITCHBACK_D128(type, i) SWITCHBACK_D64(type, i), SWITCHBACK_D64(type, i + 64)

// count: registers; a, b, add, major_a, major_b: the numbers of these operands, which follow the registers.
#define SWITCHBACK_WGMMA(count, columns, a_, b_, add_, major_a, major_b)                                  \
  __device__ __forceinline__ void wgmma_s8(int(&d)[count], uint64_t a, uint64_t b, int add) {             \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" add_                                                \
                 ", 0;\n"                                                                                 \
                 "wgmma.mma_async.sync.aligned.m64n" #columns "k32.s32.s8.s8 {" SWITCHBACK_N##columns     \
                 "}, %" a_ ", %" b_ ", p;\n}\n"                                                           \
                 : SWITCHBACK_D##count("+r", 0)                                                           \
                 : "l"(a), "l"(b), "r"(add)                                                               \
                 : "memory");                                                                             \
  }                                                                                                       \
  template <Major kMajorA, Major kMajorB>                                                                 \
  __device__ __forceinline__ void wgmma_bf16(float(&d)[count], uint64_t a, uint64_t b, int add) {         \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" add_                                                \
                 ", 0;\n"                                                                                 \
                 "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32.bf16.bf16 {" SWITCHBACK_N##columns \
                 "}, %" a_ ", %" b_ ", p, 1, 1, %" major_a ", %" major_b ";\n}\n"                         \
                 : SWITCHBACK_D##count("+f", 0)                                                           \
                 : "l"(a), "l"(b), "r"(add), "n"(kMajorA == Major::mn ? 1 : 0),                           \
                   "n"(kMajorB == Major::mn ? 1 : 0)                                                      \
                 : "memory");                                                                             \
  }

SWITCHBACK_WGMMA(4, 8, "4", "5", "6", "7", "8")
SWITCHBACK_WGMMA(32, 64, "32", "33", "34", "35", "36")
SWITCHBACK_WGMMA(64, 128, "64", "65", "66", "67", "68")
SWITCHBACK_WGMMA(80, 160, "80", "81", "82", "83", "84")
SWITCHBACK_WGMMA(96, 192, "96", "97", "98", "99", "100")
SWITCHBACK_WGMMA(128, 256, "128", "129", "130", "131", "132")

#undef SWITCHBACK_N8
#undef SWITCHBACK_N64
#undef SWITCHBACK_N128
#undef SWITCHBACK_N160
#undef SWITCHBACK_N192
#undef SWITCHBACK_N256
#undef SWITCHBACK_D4
#undef SWITCHBACK_D16
#undef SWITCHBACK_D32
#undef SWITCHBACK_D64
#undef SWITCHBACK_D80
#undef SWITCHBACK_D96
#undef SWITCHBACK_D128
#undef SWITCHBACK_WGMMA

}  // namespace switchback::ptx
