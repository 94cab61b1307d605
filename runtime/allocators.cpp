// allocators.cpp: the process's allocators: one a device, and one for page-locked host memory.
#include <sys/mman.h>

#include <array>
#include <cstdlib>
#include <mutex>

#include "runtime/allocator.h"

namespace switchback {
namespace {

constexpr size_t huge_page = size_t{2} << 20;

class HostMemory : public MemorySource {
 public:
  void* take(size_t bytes) override {
    void* memory = nullptr;
    const bool huge = bytes >= huge_page;
    if (posix_memalign(&memory, huge ? huge_page : CachingAllocator::alignment, bytes) != 0) return nullptr;
    if (huge) madvise(memory, bytes, MADV_HUGEPAGE);  // a wish: fewer page faults and TLB misses
    return memory;
  }
  void give(void* memory, size_t) override { std::free(memory); }
  std::string name() const override { return "host memory"; }
};

constexpr int max_cuda_devices = 64;

struct Registry {
  std::mutex mutex;
  std::array<CachingAllocator*, max_cuda_devices> cuda{};
};

Registry& registry() {
  static Registry* const instance = new Registry;  // never destroyed: static tensors may outlive it otherwise
  return *instance;
}

struct PageLocked {
  std::mutex mutex;
  CachingAllocator* memory = nullptr;
};

PageLocked& page_locked() {
  static PageLocked* const instance = new PageLocked;  // never destroyed
  return *instance;
}

}  // namespace

CachingAllocator& allocator(Device device) {
  if (device.kind == Device::cpu) {
    static CachingAllocator* const host =
        new CachingAllocator(std::make_unique<HostMemory>());  // never destroyed
    return *host;
  }
  CHECK(device.index >= 0 && device.index < max_cuda_devices, "no such device: ", device);
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  CachingAllocator* found = r.cuda[static_cast<size_t>(device.index)];
  if (!found) fail("no memory on ", device, ": this program was built without CUDA; use --device cpu");
  return *found;
}

void register_allocator(Device device, std::unique_ptr<MemorySource> source) {
  CHECK(device.kind == Device::cuda && device.index >= 0 && device.index < max_cuda_devices,
        "only CUDA devices are registered, got ", device);
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  CachingAllocator*& slot = r.cuda[static_cast<size_t>(device.index)];
  CHECK(!slot, device, " is registered twice");
  slot = new CachingAllocator(std::move(source));
}

CachingAllocator& page_locked_memory() {
  PageLocked& p = page_locked();
  const std::lock_guard lock(p.mutex);
  return p.memory ? *p.memory : allocator(cpu_device);
}

void register_page_locked_memory(const std::function<std::unique_ptr<MemorySource>()>& make) {
  PageLocked& p = page_locked();
  const std::lock_guard lock(p.mutex);
  if (!p.memory) p.memory = new CachingAllocator(make());
}

}  // namespace switchback
