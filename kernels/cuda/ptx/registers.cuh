// registers.cuh: moves registers between the warpgroups of a block.
//
// A kernel starts with the same number of registers per thread everywhere (384 threads: 168 each). A producer
// that only starts copies gives most of its share back; consumers, which hold accumulators, take more. Needs
// __launch_bounds__ with a block size, and a branch that a whole warpgroup takes together.
#pragma once

namespace switchback::ptx {

template <int kRegisters>
__device__ __forceinline__ void give_back_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace switchback::ptx
