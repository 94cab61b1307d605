// cuda_memory.h: memory of a GPU for the caching allocator, and host memory that a GPU can copy from by
// itself.
#pragma once

#include <cstddef>
#include <memory>

#include "runtime/allocator.h"

namespace switchback {

// cudaMalloc and cudaFree on one device. Nothing is called before the first take(). A cudaFree waits for the
// device, so memory that the allocator gives back is not in use any more.
std::unique_ptr<MemorySource> cuda_memory(Device device);

// The same for page-locked host memory (cudaMallocHost): copies between it and a GPU run beside the CPU.
std::unique_ptr<MemorySource> page_locked_memory(Device device);

}  // namespace switchback
