// mbarrier.cuh: the barrier in shared memory on which the copy engine and the warps of a kernel meet.
//
// An mbarrier counts two things: arrivals of threads and bytes of bulk copies. A phase ends when both counts
// reach zero; the barrier then starts the next phase by itself. A waiter names the phase by its parity (0, 1,
// 0, 1, ...): wait(barrier, p) returns once the phase of parity p has ended. A fresh barrier is in phase 0,
// so wait(barrier, 1) returns at once: that is how a producer finds an empty ring at the start.
//
// Compile with -DSWITCHBACK_TRAP_STUCK_BARRIERS for a build in which a wait that lasts absurdly long prints
// who waits for what (role, stage, parity) and traps: a mistake in the barriers then shows up as a line of
// text instead of a hang.
#pragma once

#include <cstdint>
#ifdef SWITCHBACK_TRAP_STUCK_BARRIERS
#include <cstdio>
#endif

namespace switchback::ptx {

// Shared memory addresses are 32 bits wide in PTX.
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals)
               : "memory");
}

// Makes initialised barriers visible to the copy engine and to the other blocks of the cluster.
__device__ __forceinline__ void mbarrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Arrives at the same barrier of another block of the cluster (or of this one). Releases at block scope only:
// what is handed over is the right to overwrite operands that finished products have read, no data of this
// thread; release at cluster scope would cost a memory fence of the whole GPU each time.
__device__ __forceinline__ void mbarrier_arrive_in_cluster(uint64_t* barrier, uint32_t block_rank) {
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(block_rank)
      : "memory");
}

// Arrives and announces that `bytes` of bulk copies will land in this phase.
__device__ __forceinline__ void mbarrier_arrive_and_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
}

// True once the phase of this parity has ended. The hardware suspends the thread for a while before it says
// no.
__device__ __forceinline__ bool mbarrier_try_wait(uint64_t* barrier, uint32_t parity) {
  uint32_t ended;
  asm volatile(
      "{\n"
      ".reg .pred ended;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2;\n"
      "selp.u32 %0, 1, 0, ended;\n"
      "}\n"
      : "=r"(ended)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return ended != 0;
}

// `role` and `stage` are only for the message of the debug build.
__device__ __forceinline__ void mbarrier_wait(uint64_t* barrier, uint32_t parity, const char* role,
                                              int stage) {
#ifdef SWITCHBACK_TRAP_STUCK_BARRIERS
  for (int64_t polls = 0; !mbarrier_try_wait(barrier, parity); ++polls) {
    if (polls == 20'000'000) {
      printf("stuck barrier: %s waits for stage %d, parity %u (block %d, thread %d)\n", role, stage, parity,
             static_cast<int>(blockIdx.x), static_cast<int>(threadIdx.x));
      __trap();
    }
  }
#else
  (void)role, (void)stage;
  while (!mbarrier_try_wait(barrier, parity)) {
  }
#endif
}

}  // namespace switchback::ptx
