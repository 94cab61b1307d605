// allocator.h: a caching allocator over a source of raw memory.
//
// take() rounds a request up to `alignment`, looks for the smallest cached block that is large enough, splits
// off what is left over, and only when there is none asks the source for a new segment. give() returns a
// block to the cache and merges it with free neighbours of the same segment. Nothing goes back to the source
// until release_cached() or destruction. So the second training step allocates nothing from the system, and
// its addresses repeat: a captured CUDA graph relies on that (forbid_growth).
//
// Bytes are counted by named context ("parameters", "activations", ...): a MemoryContext on the stack names
// what is allocated while it lives.
//
// Two debugging aids on CPU memory: SWITCHBACK_POISON=1 in the environment fills what take() returns with
// 0xff (NaN in every float type), and a build with AddressSanitizer sees a use after give() and a write past
// the end.
//
// The memory source is an interface, so the allocator is tested without any GPU. All functions may be called
// from several threads.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "runtime/device.h"

namespace switchback {

class MemorySource {
 public:
  virtual ~MemorySource() = default;
  virtual void* take(size_t bytes) = 0;  // nullptr when there is no memory left
  virtual void give(void* memory, size_t bytes) = 0;
  virtual std::string name() const = 0;  // for error messages: "host memory", "cuda:0"
  virtual bool cpu_can_write() const { return true; }  // false for device memory: no debugging aids
};

struct MemoryStatistics {
  size_t held = 0;       // bytes taken from the source and not given back
  size_t used = 0;       // bytes handed out at the moment
  size_t peak_used = 0;  // largest `used` so far (since reset_peak)
  size_t segments_taken = 0;
  struct Context {
    size_t used = 0, peak = 0;
  };
  std::map<std::string, Context> contexts;
};

class CachingAllocator {
 public:
  static constexpr size_t alignment = 256;  // bytes; what TMA and vector loads want, whole cache lines

  explicit CachingAllocator(std::unique_ptr<MemorySource> source);
  ~CachingAllocator();
  CachingAllocator(const CachingAllocator&) = delete;
  CachingAllocator& operator=(const CachingAllocator&) = delete;

  // Errors: names the context, the size asked for, what is held and used, and which flags reduce memory.
  void* take(size_t bytes);
  void give(void* memory);

  void forbid_growth(bool forbidden);  // while true, take() fails instead of asking the source
  void release_cached();               // gives wholly free segments back to the source
  MemoryStatistics statistics() const;
  void reset_peak();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The process-wide allocator of a device. It lives until the process ends, so static tensors may outlive
// main. Errors: a CUDA device that nobody registered (a build without CUDA).
CachingAllocator& allocator(Device device);
// How a back end brings its memory: called once per device, before the first tensor on it.
void register_allocator(Device device, std::unique_ptr<MemorySource> source);

// Names what is allocated by this thread while it lives; nests.
class MemoryContext {
 public:
  explicit MemoryContext(const char* name);
  ~MemoryContext();
  MemoryContext(const MemoryContext&) = delete;
  static const char* current();  // "other" outside of every context

 private:
  const char* outer_;
};

}  // namespace switchback
