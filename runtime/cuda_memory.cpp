#include "runtime/cuda_memory.h"

#include <cuda_runtime_api.h>

#include "runtime/check.h"

namespace switchback {
namespace {

// Makes a device current while it lives.
class OnDevice {
 public:
  explicit OnDevice(int index) {
    cudaGetDevice(&before_);
    cudaSetDevice(index);
  }
  ~OnDevice() { cudaSetDevice(before_); }
  OnDevice(const OnDevice&) = delete;

 private:
  int before_ = 0;
};

class CudaMemory : public MemorySource {
 public:
  explicit CudaMemory(Device device) : device_(device) {}

  void* take(size_t bytes) override {
    const OnDevice current(device_.index);
    void* memory = nullptr;
    const cudaError_t error = cudaMalloc(&memory, bytes);
    if (error == cudaSuccess) return memory;
    cudaGetLastError();  // clears it: the allocator says what did not fit, and who asked
    if (error == cudaErrorMemoryAllocation) return nullptr;
    fail(device_, ": cudaMalloc of ", bytes, " bytes: ", cudaGetErrorString(error));
  }
  void give(void* memory, size_t) override {
    const OnDevice current(device_.index);
    cudaFree(memory);
  }
  std::string name() const override { return concat(device_); }
  bool cpu_can_write() const override { return false; }
  std::optional<MemoryRoom> room() const override {
    const OnDevice current(device_.index);
    MemoryRoom room;
    if (cudaMemGetInfo(&room.free, &room.total) == cudaSuccess) return room;
    cudaGetLastError();
    return {};
  }

 private:
  Device device_;
};

class PageLockedMemory : public MemorySource {
 public:
  explicit PageLockedMemory(Device device) : device_(device) {}

  void* take(size_t bytes) override {
    const OnDevice current(device_.index);
    void* memory = nullptr;
    if (cudaHostAlloc(&memory, bytes, cudaHostAllocPortable) == cudaSuccess) return memory;
    cudaGetLastError();
    return nullptr;
  }
  void give(void* memory, size_t) override { cudaFreeHost(memory); }
  std::string name() const override { return "page-locked host memory"; }

 private:
  Device device_;
};

}  // namespace

std::unique_ptr<MemorySource> cuda_memory(Device device) { return std::make_unique<CudaMemory>(device); }
std::unique_ptr<MemorySource> page_locked_memory(Device device) {
  return std::make_unique<PageLockedMemory>(device);
}

}  // namespace switchback
