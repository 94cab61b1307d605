// dependent_launch.cuh: lets the next kernel of a stream start while this one finishes.
//
// A kernel launched with cudaLaunchAttributeProgrammaticStreamSerialization may start as soon as every block
// of its predecessor has called allow_next_kernel() or exited. It does what needs no input (barriers, tensor
// maps) and then calls wait_for_previous_kernel(), which returns when the predecessor has ended and its
// writes are visible. Launched without the attribute, both calls do nothing.
#pragma once

namespace switchback::ptx {

__device__ __forceinline__ void wait_for_previous_kernel() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}
__device__ __forceinline__ void allow_next_kernel() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

}  // namespace switchback::ptx
