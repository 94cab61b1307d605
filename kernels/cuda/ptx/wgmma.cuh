// wgmma.cuh: the tensor core instruction of Hopper. One warpgroup (4 warps, 128 threads) multiplies
//   d (64 x N, s32, in registers) += a (64 x 32, s8, in shared memory) * b (N x 32, s8, in shared memory)^T
// asynchronously: issue several, commit them as a group, wait for the group.
//
// Operands are K-major (K runs along a row) and lie in shared memory as the copy engine's 128-byte swizzle
// leaves them: rows of 128 bytes, eight rows to an atom of 1024 bytes, the 16-byte pieces of row r permuted
// by XOR with r mod 8. A descriptor names the first byte; the next 32 of K are 32 bytes further, for the
// swizzle acts on address bits.
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

// Descriptor of a K-major tile in 128-byte swizzle that starts at `tile` (on a border of 1024 bytes).
__device__ __forceinline__ uint64_t wgmma_descriptor(const void* tile) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  constexpr uint64_t kAtomStride = uint64_t{1024 >> 4} << 32;  // from one group of eight rows to the next
  constexpr uint64_t kUnused = uint64_t{1} << 16;  // the leading offset has no meaning in this layout
  return kSwizzle128 | kAtomStride | kUnused | ((shared_address(tile) & 0x3ffff) >> 4);
}

// The same tile, `bytes` further on (a multiple of 16: 32 along K, 128 per row).
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

// d = a b^T (add = 0) or d += a b^T (add = 1); N is twice the number of registers.
//
// The registers must be spelled out in the instruction's text, hence the lists below.
#define SWITCHBACK_D8(i)                                                                      \
  "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3]), "+r"(d[i + 4]), "+r"(d[i + 5]), \
      "+r"(d[i + 6]), "+r"(d[i + 7])
#define SWITCHBACK_D16(i) SWITCHBACK_D8(i), SWITCHBACK_D8(i + 8)
#define SWITCHBACK_D32(i) SWITCHBACK_D16(i), SWITCHBACK_D16(i + 16)
#define SWITCHBACK_D64(i) SWITCHBACK_D32(i), SWITCHBACK_D32(i + 32)

__device__ __forceinline__ void wgmma_s8(int (&d)[32], uint64_t a, uint64_t b, int add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, %32, %33, p;\n}\n"
      : SWITCHBACK_D32(0)
      : "l"(a), "l"(b), "r"(add)
      : "memory");
}

__device__ __forceinline__ void wgmma_s8(int (&d)[64], uint64_t a, uint64_t b, int add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, %64, %65, p;\n}\n"
      : SWITCHBACK_D64(0)
      : "l"(a), "l"(b), "r"(add)
      : "memory");
}

__device__ __forceinline__ void wgmma_s8(int (&d)[80], uint64_t a, uint64_t b, int add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %82, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n160k32.s32.s8.s8 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
      "}, %80, %81, p;\n}\n"
      : SWITCHBACK_D64(0), SWITCHBACK_D16(64)
      : "l"(a), "l"(b), "r"(add)
      : "memory");
}

__device__ __forceinline__ void wgmma_s8(int (&d)[96], uint64_t a, uint64_t b, int add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %98, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n192k32.s32.s8.s8 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
      "}, %96, %97, p;\n}\n"
      : SWITCHBACK_D64(0), SWITCHBACK_D32(64)
      : "l"(a), "l"(b), "r"(add)
      : "memory");
}

__device__ __forceinline__ void wgmma_s8(int (&d)[128], uint64_t a, uint64_t b, int add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k32.s32.s8.s8 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
      "}, %128, %129, p;\n}\n"
      : SWITCHBACK_D64(0), SWITCHBACK_D64(64)
      : "l"(a), "l"(b), "r"(add)
      : "memory");
}

#undef SWITCHBACK_D8
#undef SWITCHBACK_D16
#undef SWITCHBACK_D32
#undef SWITCHBACK_D64

}  // namespace switchback::ptx
