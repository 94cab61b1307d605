// allocator.h: a caching allocator over a source of raw memory.
//
// take() rounds a request up to `alignment`, looks for the smallest cached block that is large enough, splits
// off what is left over, and only when there is none asks the source for a new segment. give() returns a
// block to the cache and merges it with free neighbours of the same segment. Nothing goes back to the source
// until release_cached() or destruction. So the second training step allocates nothing from the system, and
// its addresses repeat. A captured CUDA graph relies on that: see "recordings" below.
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
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/check.h"
#include "runtime/device.h"

namespace switchback {

struct MemoryRoom {
  size_t free = 0, total = 0;  // bytes, of the whole device: other users' share is not free
};

class MemorySource {
 public:
  virtual ~MemorySource() = default;
  virtual void* take(size_t bytes) = 0;  // nullptr when there is no memory left
  virtual void give(void* memory, size_t bytes) = 0;
  virtual std::string name() const = 0;                // for error messages: "host memory", "cuda:0"
  virtual bool cpu_can_write() const { return true; }  // false for device memory: no debugging aids
  virtual std::optional<MemoryRoom> room() const { return {}; }  // absent: not known
};

struct MemoryStatistics {
  size_t held = 0;            // bytes taken from the source and not given back
  size_t used = 0;            // bytes handed out at the moment
  size_t peak_used = 0;       // largest `used` so far (since reset_peak)
  size_t peak_held = 0;       // largest `held` so far
  size_t segments_taken = 0;  // how often the source was asked: a steady state does not change it
  std::optional<MemoryRoom> room;
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

  // Errors (OutOfMemory): names who asked for how much, what is held and used by whom, and which flags help.
  void* take(size_t bytes);
  void give(void* memory);

  void release_cached();  // gives wholly free segments back to the source
  MemoryStatistics statistics() const;
  void reset_peak();

  // ---- recordings: a stretch of work that a device will repeat on the same addresses ----
  // From begin to end, take() fails instead of asking the source, and what is taken is written down. At the
  // end all of it must have been given back (else the recording is abandoned, with an error). It stays in the
  // cache and may serve others between two repetitions; its segments are kept until forget_recording().
  void begin_recording();
  int end_recording();  // the recording's number
  void abandon_recording();
  // Before a repetition: an error when somebody holds memory that it would write over.
  void check_recording(int number);
  void forget_recording(int number);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The process-wide allocator of a device. It lives until the process ends, so static tensors may outlive
// main. Errors: a CUDA device that nobody registered (a build without CUDA).
CachingAllocator& allocator(Device device);
// How a back end brings its memory: called once per device, before the first tensor on it.
void register_allocator(Device device, std::unique_ptr<MemorySource> source);

// Page-locked host memory, from which a GPU copies by itself; ordinary host memory until a back end brings a
// source of it (the first one counts).
CachingAllocator& page_locked_memory();
void register_page_locked_memory(const std::function<std::unique_ptr<MemorySource>()>& make);

// There is no memory left: a message for the user.
class OutOfMemory : public Error {
 public:
  using Error::Error;
};

// 1536 -> "1.5 KiB"
std::string readable_bytes(size_t bytes);

// Names what is allocated by this thread while it lives; nests.
class MemoryContext {
 public:
  explicit MemoryContext(const char* name);
  ~MemoryContext();
  MemoryContext(const MemoryContext&) = delete;
  static const char* current();  // "other" outside of every context
  // Where in the model this thread works ("visual.transformer.resblocks.3"), for the message of OutOfMemory.
  // Returns the place before. The text must outlive its use.
  static std::string_view set_place(std::string_view place);

 private:
  const char* outer_;
};

}  // namespace switchback
