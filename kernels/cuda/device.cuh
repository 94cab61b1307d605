// device.cuh: what host code asks about the current GPU and about memory before it chooses a kernel.
#pragma once

#include <cstdint>

#include "kernels/cuda/cuda_check.cuh"

namespace switchback::cuda {

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  CUDA_CHECK(cudaGetDevice(&device));
  CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

// Asked once: the GPUs of a process are of one kind.
inline bool on_hopper() {
  static const bool yes = device_attribute(cudaDevAttrComputeCapabilityMajor) == 9;
  return yes;
}
inline int multiprocessor_count() {
  static const int count = device_attribute(cudaDevAttrMultiProcessorCount);
  return count;
}

// Whether rows may move in pieces of 16 bytes.
inline bool aligned(const void* memory) { return reinterpret_cast<uintptr_t>(memory) % 16 == 0; }

}  // namespace switchback::cuda
