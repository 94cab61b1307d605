// allocator.cpp: best fit with splitting and merging.
//
// A segment is one piece of memory from the source. It is cut into blocks, a doubly linked list in address
// order:
//
//   segment  | used 512 | free 1024 | used 256 | free ... |
//
// No two neighbours are both free (give() merges), so one segment that is wholly free is one block. Free
// blocks are kept in a set ordered by (size, address): the first one not smaller than the request is the best
// fit, and among equals the lowest address wins, which makes the addresses of a repeated step repeat.
#include "runtime/allocator.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iomanip>
#include <mutex>
#include <set>
#include <unordered_map>
#include <utility>

#include "runtime/check.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace switchback {
namespace {

constexpr size_t small_segment = size_t{1} << 20;  // 1 MiB, shared by requests below it
constexpr size_t large_step = size_t{2} << 20;     // larger ones get their own, in whole huge pages

size_t round_up(size_t bytes, size_t step) { return (bytes + step - 1) / step * step; }

#if defined(__SANITIZE_ADDRESS__)
void mark_unusable(void* memory, size_t bytes) { ASAN_POISON_MEMORY_REGION(memory, bytes); }
void mark_usable(void* memory, size_t bytes) { ASAN_UNPOISON_MEMORY_REGION(memory, bytes); }
#else
void mark_unusable(void*, size_t) {}
void mark_usable(void*, size_t) {}
#endif

thread_local const char* current_context = "other";
thread_local std::string_view current_place;

struct Block {
  char* begin = nullptr;
  size_t size = 0;
  bool free = true;
  Block* previous = nullptr;  // neighbours in the same segment
  Block* next = nullptr;
  MemoryStatistics::Context* context = nullptr;  // who is charged for it while it is used
};

struct SmallerFirst {
  bool operator()(const Block* a, const Block* b) const {
    return a->size != b->size ? a->size < b->size : a->begin < b->begin;
  }
};

}  // namespace

struct CachingAllocator::State {
  mutable std::mutex mutex;
  std::unique_ptr<MemorySource> source;
  std::set<Block*, SmallerFirst> free_blocks;
  std::unordered_map<void*, Block*> used_blocks;  // by address
  std::map<char*, size_t> segments;               // address -> bytes
  std::map<std::string, MemoryStatistics::Context, std::less<>> contexts;
  size_t held = 0, used = 0, peak_used = 0, peak_held = 0, segments_taken = 0;
  bool growth_forbidden = false;
  uint64_t changes = 0;                   // of used_blocks
  using Ranges = std::map<char*, char*>;  // begin -> end; no two touch each other
  struct Recording {
    Ranges ranges;
    uint64_t checked = 0;  // value of `changes` at the last check that found nothing
  };
  std::map<int, Recording> recordings;
  std::optional<Ranges> being_recorded;
  int next_recording = 1;
  bool sanitized = false;  // tell AddressSanitizer which bytes may be touched
  bool fill_with_nan = false;

  Block* best_fit(size_t size) const {
    Block wanted;
    wanted.size = size;
    const auto found = free_blocks.lower_bound(&wanted);
    return found == free_blocks.end() ? nullptr : *found;
  }

  Block* grow(size_t size) {
    const size_t bytes = size < small_segment ? small_segment : round_up(size, large_step);
    void* memory = source->take(bytes);
    if (!memory) {  // the cache may sit on segments that are of no use for this request
      release_cached();
      memory = source->take(bytes);
    }
    if (!memory) return nullptr;
    if (sanitized) mark_unusable(memory, bytes);
    Block* block = new Block{static_cast<char*>(memory), bytes};
    segments.emplace(block->begin, bytes);
    held += bytes;
    peak_held = std::max(peak_held, held);
    ++segments_taken;
    free_blocks.insert(block);
    return block;
  }

  void give_segment(char* memory, size_t bytes) {
    if (sanitized) mark_usable(memory, bytes);
    source->give(memory, bytes);
    held -= bytes;
  }

  static void add_range(Ranges& ranges, char* begin, char* end) {
    auto next = ranges.upper_bound(begin);
    if (next != ranges.begin() && std::prev(next)->second >= begin) {
      --next;
      begin = next->first;
      end = std::max(end, next->second);
      next = ranges.erase(next);
    }
    while (next != ranges.end() && next->first <= end) {
      end = std::max(end, next->second);
      next = ranges.erase(next);
    }
    ranges.emplace(begin, end);
  }
  static bool overlaps(const Ranges& ranges, const Block* block) {
    const auto next = ranges.lower_bound(block->begin + block->size);
    return next != ranges.begin() && std::prev(next)->second > block->begin;
  }
  bool is_recorded(const Block* block) const {
    if (being_recorded && overlaps(*being_recorded, block)) return true;
    return std::ranges::any_of(recordings, [&](const auto& r) { return overlaps(r.second.ranges, block); });
  }
  // The largest block in use that lies in one of the ranges; null: none.
  const Block* held_within(const Ranges& ranges) const {
    const Block* largest = nullptr;
    for (const auto& [address, block] : used_blocks)
      if (overlaps(ranges, block) && (!largest || block->size > largest->size)) largest = block;
    return largest;
  }
  std::string name_of_context(const Block* block) const {
    for (const auto& [name, context] : contexts)
      if (&context == block->context) return name;
    return "other";
  }

  void release_cached() {
    for (auto it = free_blocks.begin(); it != free_blocks.end();) {
      Block* block = *it;
      if (block->previous || block->next || is_recorded(block)) {
        ++it;
        continue;
      }
      it = free_blocks.erase(it);
      segments.erase(block->begin);
      give_segment(block->begin, block->size);
      delete block;
    }
  }

  // Keeps the first `size` bytes of a block that is in no list; the rest becomes a free block.
  void split(Block* block, size_t size) {
    if (block->size == size) return;
    Block* rest = new Block{block->begin + size, block->size - size};
    rest->previous = block;
    rest->next = block->next;
    if (rest->next) rest->next->previous = rest;
    block->next = rest;
    block->size = size;
    free_blocks.insert(rest);
  }

  // Appends the free block `right` to its left neighbour, which must be in no list.
  void swallow(Block* left, Block* right) {
    left->size += right->size;
    left->next = right->next;
    if (left->next) left->next->previous = left;
    delete right;
  }

  // Who asked for how much, what is in use by whom (the largest first), and what helps.
  [[noreturn]] void out_of_memory(size_t bytes) const {
    std::string what =
        concat(source->name(), ": no room for ", readable_bytes(bytes), " of \"", current_context, "\"");
    if (!current_place.empty()) what += concat(" (", current_place, ")");
    what += concat(": ", readable_bytes(held), " held, ", readable_bytes(used), " used");
    std::vector<std::pair<size_t, std::string>> users;
    for (const auto& [name, context] : contexts)
      if (context.used > 0) users.emplace_back(context.used, name);
    std::ranges::sort(users, std::greater<>());
    for (size_t i = 0; i < users.size(); ++i)
      what += concat(i == 0 ? " (" : ", ", users[i].second, " ", readable_bytes(users[i].first),
                     i + 1 == users.size() ? ")" : "");
    if (const std::optional<MemoryRoom> room = source->room())
      what += concat(", ", readable_bytes(room->free), " of ", readable_bytes(room->total), " free");
    if (growth_forbidden) {
      throw OutOfMemory(
          what +
          ", and growth is forbidden: the memory of a captured step is fixed by the step before it; "
          "run with --eager if sizes change from step to step");
    }
    const std::string_view context = current_context;
    if (context == "parameters" || context == "gradients" || context == "optimizer")
      throw OutOfMemory(what + "; no flag of the batch helps against this, only a smaller --model");
    throw OutOfMemory(what +
                      "; lower --batch-size (--accum-freq keeps the global batch) or turn on --recompute "
                      "(gelu, cheap) or --grad-checkpointing");
  }
};

CachingAllocator::CachingAllocator(std::unique_ptr<MemorySource> source) : state_(std::make_unique<State>()) {
  const char* poison = std::getenv("SWITCHBACK_POISON");
  state_->sanitized = source->cpu_can_write();
  state_->fill_with_nan = source->cpu_can_write() && poison && std::strcmp(poison, "1") == 0;
  state_->source = std::move(source);
}

CachingAllocator::~CachingAllocator() {
  for (auto& [address, block] : state_->used_blocks) delete block;
  for (Block* block : state_->free_blocks) delete block;
  for (auto& [memory, bytes] : state_->segments) state_->give_segment(memory, bytes);
}

void* CachingAllocator::take(size_t bytes) {
  State& s = *state_;
  const std::lock_guard lock(s.mutex);
  const size_t size = round_up(std::max<size_t>(bytes, 1), alignment);
  if (size < bytes) s.out_of_memory(bytes);  // wrapped around
  Block* block = s.best_fit(size);
  if (!block && !s.growth_forbidden) block = s.grow(size);
  if (!block) s.out_of_memory(bytes);

  s.free_blocks.erase(block);
  s.split(block, size);
  block->free = false;
  s.used_blocks.emplace(block->begin, block);
  ++s.changes;
  if (s.being_recorded) State::add_range(*s.being_recorded, block->begin, block->begin + block->size);

  auto context = s.contexts.find(std::string_view(current_context));
  if (context == s.contexts.end())
    context = s.contexts.emplace(current_context, MemoryStatistics::Context{}).first;
  block->context = &context->second;
  block->context->used += size;
  block->context->peak = std::max(block->context->peak, block->context->used);
  s.used += size;
  s.peak_used = std::max(s.peak_used, s.used);

  if (s.sanitized) mark_usable(block->begin, bytes);  // not the padding: a write past the end is seen
  if (s.fill_with_nan) std::memset(block->begin, 0xff, bytes);
  return block->begin;
}

void CachingAllocator::give(void* memory) {
  if (!memory) return;
  State& s = *state_;
  const std::lock_guard lock(s.mutex);
  const auto found = s.used_blocks.find(memory);
  CHECK(found != s.used_blocks.end(), s.source->name(), ": give() of memory that is not handed out");
  Block* block = found->second;
  s.used_blocks.erase(found);
  ++s.changes;
  if (s.sanitized) mark_unusable(block->begin, block->size);
  s.used -= block->size;
  block->context->used -= block->size;
  block->context = nullptr;
  block->free = true;

  if (Block* right = block->next; right && right->free) {
    s.free_blocks.erase(right);
    s.swallow(block, right);
  }
  if (Block* left = block->previous; left && left->free) {
    s.free_blocks.erase(left);
    s.swallow(left, block);
    block = left;
  }
  s.free_blocks.insert(block);
}

void CachingAllocator::release_cached() {
  const std::lock_guard lock(state_->mutex);
  state_->release_cached();
}

MemoryStatistics CachingAllocator::statistics() const {
  const State& s = *state_;
  const std::lock_guard lock(s.mutex);
  MemoryStatistics result{s.held, s.used, s.peak_used, s.peak_held, s.segments_taken, s.source->room(), {}};
  for (const auto& [name, context] : s.contexts) result.contexts.emplace(name, context);
  return result;
}

void CachingAllocator::reset_peak() {
  const std::lock_guard lock(state_->mutex);
  state_->peak_used = state_->used;
  for (auto& [name, context] : state_->contexts) context.peak = context.used;
}

// ---- recordings ----

void CachingAllocator::begin_recording() {
  State& s = *state_;
  const std::lock_guard lock(s.mutex);
  CHECK(!s.being_recorded, s.source->name(), ": a recording within a recording");
  s.being_recorded.emplace();
  s.growth_forbidden = true;
}

int CachingAllocator::end_recording() {
  State& s = *state_;
  const std::lock_guard lock(s.mutex);
  CHECK(s.being_recorded, s.source->name(), ": end of a recording that did not begin");
  s.growth_forbidden = false;
  const State::Ranges ranges = std::move(*s.being_recorded);
  s.being_recorded.reset();
  if (const Block* kept = s.held_within(ranges))
    fail(s.source->name(), ": a recorded step keeps ", readable_bytes(kept->size), " of \"",
         s.name_of_context(kept), "\" that it took: it could not be repeated");
  s.recordings.emplace(s.next_recording, State::Recording{ranges, s.changes});
  return s.next_recording++;
}

void CachingAllocator::abandon_recording() {
  const std::lock_guard lock(state_->mutex);
  state_->growth_forbidden = false;
  state_->being_recorded.reset();
}

void CachingAllocator::check_recording(int number) {
  State& s = *state_;
  const std::lock_guard lock(s.mutex);
  const auto found = s.recordings.find(number);
  CHECK(found != s.recordings.end(), s.source->name(), ": no recording ", number);
  State::Recording& recording = found->second;
  if (recording.checked == s.changes) return;
  if (const Block* held = s.held_within(recording.ranges))
    fail(s.source->name(), ": the captured step would write over ", readable_bytes(held->size), " of \"",
         s.name_of_context(held), "\", taken since it was captured and still held");
  recording.checked = s.changes;
}

void CachingAllocator::forget_recording(int number) {
  const std::lock_guard lock(state_->mutex);
  state_->recordings.erase(number);
}

std::string readable_bytes(size_t bytes) {
  std::ostringstream out;
  out << std::fixed << std::setprecision(1);
  const double KiB = 1024, value = static_cast<double>(bytes);
  if (value < KiB) return std::to_string(bytes) + " bytes";
  if (value < KiB * KiB)
    out << value / KiB << " KiB";
  else if (value < KiB * KiB * KiB)
    out << value / (KiB * KiB) << " MiB";
  else
    out << value / (KiB * KiB * KiB) << " GiB";
  return out.str();
}

// ---- contexts ----

MemoryContext::MemoryContext(const char* name) : outer_(current_context) { current_context = name; }
MemoryContext::~MemoryContext() { current_context = outer_; }
const char* MemoryContext::current() { return current_context; }
std::string_view MemoryContext::set_place(std::string_view place) {
  return std::exchange(current_place, place);
}

}  // namespace switchback
