// named_barrier.cuh: the sixteen hardware barriers of a block (number 0 is __syncthreads).
//
// sync waits until `threads` threads have come; arrive only counts itself and goes on. With both, one
// warpgroup can tell another "your turn" without waiting itself. Numbers should be literals: with run-time
// numbers the compiler reserves all sixteen.
#pragma once

namespace switchback::ptx {

template <int kNumber>
__device__ __forceinline__ void named_barrier_sync(int threads) {
  asm volatile("bar.sync %0, %1;" ::"n"(kNumber), "r"(threads) : "memory");
}

template <int kNumber>
__device__ __forceinline__ void named_barrier_arrive(int threads) {
  asm volatile("bar.arrive %0, %1;" ::"n"(kNumber), "r"(threads) : "memory");
}

}  // namespace switchback::ptx
