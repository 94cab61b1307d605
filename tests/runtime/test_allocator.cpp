// The caching allocator over a source that counts: every promise of allocator.h, then a long random run
// against a model that knows nothing of blocks.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <thread>

#include "runtime/allocator.h"
#include "runtime/check.h"
#include "runtime/tensor.h"
#include "tests/runtime/temporary_folder.h"

#undef CHECK  // from here on it is doctest's
#include <doctest/doctest.h>

using namespace switchback;

namespace {

constexpr size_t MiB = size_t{1} << 20;

struct SourceLog {
  size_t limit = 64 * MiB;  // bytes it can give in total
  size_t out = 0;
  int taken = 0, given = 0;
};

class CountingSource : public MemorySource {
 public:
  explicit CountingSource(SourceLog& log) : log_(log) {}
  void* take(size_t bytes) override {
    if (log_.out + bytes > log_.limit) return nullptr;
    log_.out += bytes;
    ++log_.taken;
    return std::aligned_alloc(CachingAllocator::alignment, bytes);
  }
  void give(void* memory, size_t bytes) override {
    log_.out -= bytes;
    ++log_.given;
    std::free(memory);
  }
  std::string name() const override { return "test memory"; }

 private:
  SourceLog& log_;
};

char* bytes_at(void* p) { return static_cast<char*>(p); }

}  // namespace

TEST_CASE("allocator: blocks are aligned, cut from one segment, and found again") {
  SourceLog log;
  CachingAllocator memory(std::make_unique<CountingSource>(log));
  void* a = memory.take(1000);
  void* b = memory.take(1);
  void* c = memory.take(0);
  for (void* p : {a, b, c}) {
    REQUIRE(p != nullptr);
    CHECK_EQ(reinterpret_cast<uintptr_t>(p) % CachingAllocator::alignment, 0);
  }
  CHECK_EQ(bytes_at(b), bytes_at(a) + 1024);
  CHECK_EQ(bytes_at(c), bytes_at(b) + 256);
  CHECK_EQ(log.taken, 1);
  CHECK_EQ(memory.statistics().held, MiB);
  CHECK_EQ(memory.statistics().used, 1024 + 256 + 256);

  memory.give(a);
  CHECK_EQ(memory.take(900), a);  // the same place for the same request
  memory.give(a);
  memory.give(b);
  memory.give(c);
  memory.give(nullptr);
  CHECK_EQ(memory.statistics().used, 0);
  CHECK_EQ(memory.take(MiB - 256), a);  // everything has merged into one block again
  CHECK_EQ(log.taken, 1);
  memory.give(a);
}

TEST_CASE("allocator: the smallest block that fits is taken, in whatever order neighbours were given") {
  SourceLog log;
  CachingAllocator memory(std::make_unique<CountingSource>(log));
  void* big = memory.take(4096);
  void* wall = memory.take(256);
  void* small = memory.take(1024);
  void* wall2 = memory.take(256);
  memory.give(big);
  memory.give(small);
  CHECK_EQ(memory.take(1000), small);
  CHECK_EQ(memory.take(1000), big);
  memory.give(small);
  memory.give(wall);  // joins the rest of `big` on its left and `small` on its right
  CHECK_EQ(memory.take(3072 + 256 + 1024), bytes_at(big) + 1024);
  memory.give(wall2);
  memory.give(bytes_at(big) + 1024);
  memory.give(big);
}

TEST_CASE("allocator: large requests get segments of their own, which release_cached gives back") {
  SourceLog log;
  {
    CachingAllocator memory(std::make_unique<CountingSource>(log));
    void* large = memory.take(3 * MiB);
    CHECK_EQ(memory.statistics().held, 4 * MiB);
    void* small = memory.take(MiB / 2);  // fits beside it
    CHECK_EQ(memory.statistics().segments_taken, 1);
    void* other = memory.take(MiB);
    CHECK_EQ(memory.statistics().held, 6 * MiB);
    memory.give(other);
    memory.give(large);
    memory.release_cached();  // only the second segment is wholly free
    CHECK_EQ(memory.statistics().held, 4 * MiB);
    CHECK_EQ(log.given, 1);
    memory.give(small);
    memory.release_cached();
    CHECK_EQ(memory.statistics().held, 0);
    memory.take(10);  // still out when the allocator goes: the segment returns all the same
  }
  CHECK_EQ(log.out, 0);
  CHECK_EQ(log.taken, log.given);
}

TEST_CASE("allocator: a useless cache is given back before memory counts as full") {
  SourceLog log;
  log.limit = 8 * MiB;
  CachingAllocator memory(std::make_unique<CountingSource>(log));
  void* a = memory.take(4 * MiB);
  memory.give(a);
  void* b = memory.take(6 * MiB);  // 4 MiB are cached and too small
  CHECK(b != nullptr);
  memory.give(b);
}

TEST_CASE("allocator: errors name the context, the sizes and the cure") {
  SourceLog log;
  log.limit = 8 * MiB;
  CachingAllocator memory(std::make_unique<CountingSource>(log));
  void* a = memory.take(3 * MiB);
  const MemoryContext context("activations");
  std::string text = error_of([&] { memory.take(7 * MiB); });
  for (const char* part : {"test memory", "activations", "7.0 MiB", "4.0 MiB held", "3.0 MiB used",
                           "--batch-size", "--grad-checkpointing"}) {
    CHECK_MESSAGE(contains(text, part), part, " is missing in: ", text);
  }
  CHECK(contains(error_of([&] { memory.take(~size_t{0}); }), "no room"));

  memory.begin_recording();
  text = error_of([&] { memory.take(2 * MiB); });
  CHECK_MESSAGE(contains(text, "growth is forbidden"), text);
  CHECK_EQ(log.taken, 1);
  memory.give(memory.take(1 * MiB));  // what is cached may still be used
  memory.abandon_recording();
  memory.give(memory.take(2 * MiB));
  CHECK_EQ(log.taken, 2);

  CHECK(contains(error_of([&] { memory.give(bytes_at(a) + 256); }), "not handed out"));
  memory.give(a);
  CHECK(contains(error_of([&] { memory.give(a); }), "not handed out"));
  CHECK(contains(error_of([] { Tensor({2}, DType::f32, {Device::cuda, 63}); }), "built without CUDA"));
}

TEST_CASE("allocator: bytes are charged to the context that took them, whoever gives them back") {
  SourceLog log;
  CachingAllocator memory(std::make_unique<CountingSource>(log));
  CHECK_EQ(std::string(MemoryContext::current()), "other");
  void *a, *b, *c;
  {
    const MemoryContext outer("parameters");
    a = memory.take(512);
    {
      const MemoryContext inner("gradients");
      b = memory.take(256);
    }
    CHECK_EQ(std::string(MemoryContext::current()), "parameters");
    c = memory.take(256);
  }
  auto contexts = memory.statistics().contexts;
  CHECK_EQ(contexts["parameters"].used, 768);
  CHECK_EQ(contexts["gradients"].used, 256);
  CHECK_EQ(memory.statistics().peak_used, 1024);
  memory.give(a);
  memory.give(b);
  contexts = memory.statistics().contexts;
  CHECK_EQ(contexts["parameters"].used, 256);
  CHECK_EQ(contexts["parameters"].peak, 768);
  CHECK_EQ(contexts["gradients"].used, 0);
  CHECK_EQ(memory.statistics().peak_used, 1024);
  memory.reset_peak();
  CHECK_EQ(memory.statistics().peak_used, 256);
  CHECK_EQ(memory.statistics().contexts["parameters"].peak, 256);
  memory.give(c);
}

TEST_CASE("allocator: a registered source serves a device") {
  static SourceLog log;  // the allocator lives until the process ends
  const Device device{Device::cuda, 7};
  register_allocator(device, std::make_unique<CountingSource>(log));
  void* p = allocator(device).take(100);
  CHECK_EQ(log.taken, 1);
  allocator(device).give(p);
  CHECK(contains(error_of([&] { register_allocator(device, std::make_unique<CountingSource>(log)); }),
                 "twice"));
}

TEST_CASE("allocator: SWITCHBACK_POISON=1 hands out NaN") {
  SourceLog log;
  setenv("SWITCHBACK_POISON", "1", 1);
  CachingAllocator memory(std::make_unique<CountingSource>(log));
  unsetenv("SWITCHBACK_POISON");
  void* p = memory.take(1000);
  std::memset(p, 0, 1000);
  memory.give(p);
  auto* values = static_cast<float*>(memory.take(1000));
  CHECK_EQ(static_cast<void*>(values), p);
  for (int i = 0; i < 250; ++i) REQUIRE(values[i] != values[i]);
  memory.give(values);
}

TEST_CASE("allocator: twenty thousand random calls against a model") {
  // The model: every live block as an interval with its fill byte. Blocks must never overlap, keep their
  // contents, and the sums must agree; at the end everything is one free block per segment again.
  SourceLog log;
  log.limit = size_t{1} << 30;
  CachingAllocator memory(std::make_unique<CountingSource>(log));
  struct Live {
    size_t size;
    char fill;
  };
  std::map<char*, Live> live;
  std::mt19937 random(1);
  size_t used = 0, peak = 0;
  const auto rounded = [](size_t n) { return (std::max<size_t>(n, 1) + 255) / 256 * 256; };
  for (int step = 0; step < 20000; ++step) {
    const bool take = live.empty() || (live.size() < 200 && random() % 2 == 0);
    if (take) {
      const size_t size =
          random() % 50 == 0 ? random() % (3 * MiB) : random() % (size_t{1} << (random() % 14));
      char* p = bytes_at(memory.take(size));
      const char fill = static_cast<char>(random());
      const size_t room = rounded(size);
      const auto above = live.lower_bound(p);
      if (above != live.end()) REQUIRE_LE(p + room, above->first);
      if (above != live.begin()) {
        const auto below = std::prev(above);
        REQUIRE_LE(below->first + rounded(below->second.size), p);
      }
      std::memset(p, fill, size);
      live[p] = {size, fill};
      used += room;
      peak = std::max(peak, used);
    } else {
      auto victim = std::next(live.begin(), static_cast<long>(random() % live.size()));
      const auto [size, fill] = victim->second;
      if (size > 0) {
        REQUIRE_EQ(victim->first[0], fill);
        REQUIRE_EQ(victim->first[size - 1], fill);
        REQUIRE_EQ(victim->first[size / 2], fill);
      }
      memory.give(victim->first);
      used -= rounded(size);
      live.erase(victim);
    }
    if (step % 1000 == 0) {
      const MemoryStatistics s = memory.statistics();
      REQUIRE_EQ(s.used, used);
      REQUIRE_EQ(s.peak_used, peak);
      REQUIRE_EQ(s.held, log.out);
      if (step % 5000 == 0) memory.release_cached();
    }
  }
  for (const auto& [p, block] : live) memory.give(p);
  memory.release_cached();
  CHECK_EQ(memory.statistics().held, 0);  // false if any merge had been missed
  CHECK_EQ(log.out, 0);
}

TEST_CASE("allocator: a repeated step repeats its addresses and takes nothing new") {
  SourceLog log;
  CachingAllocator memory(std::make_unique<CountingSource>(log));
  const auto step = [&] {
    std::vector<void*> addresses, live;
    std::mt19937 random(3);
    for (int i = 0; i < 300; ++i) {
      addresses.push_back(memory.take(random() % 20000));
      live.push_back(addresses.back());
      if (random() % 3 == 0) {
        std::swap(live[random() % live.size()], live.back());
        memory.give(live.back());
        live.pop_back();
      }
    }
    while (!live.empty()) {
      memory.give(live.back());
      live.pop_back();
    }
    return addresses;
  };
  step();
  memory.begin_recording();
  CHECK(step() == step());
}

TEST_CASE("allocator: who uses how much, and where, when memory is full") {
  SourceLog log;
  log.limit = 8 * MiB;
  CachingAllocator memory(std::make_unique<CountingSource>(log));
  void *weights = nullptr, *moments = nullptr;
  {
    const MemoryContext context("parameters");
    weights = memory.take(2 * MiB);
  }
  {
    const MemoryContext context("optimizer");
    moments = memory.take(4 * MiB);
  }
  const MemoryContext context("activations");
  const std::string_view outside = MemoryContext::set_place("visual.transformer.resblocks.3");
  try {
    memory.take(3 * MiB);
    FAIL("no error");
  } catch (const OutOfMemory& error) {
    const std::string text = error.what();
    CHECK(text.starts_with("test memory: no room for 3.0 MiB of \"activations\" (visual.transformer.resblocks.3)"));
    CHECK(contains(text, "6.0 MiB used (optimizer 4.0 MiB, parameters 2.0 MiB)"));
    CHECK(contains(text, "--recompute"));
  }
  MemoryContext::set_place(outside);
  {
    const MemoryContext larger("optimizer");
    CHECK(contains(error_of([&] { memory.take(3 * MiB); }), "a smaller --model"));
  }
  memory.give(weights);
  memory.give(moments);
  CHECK_EQ(readable_bytes(3 * MiB * 1024 / 2), "1.5 GiB");
}

TEST_CASE("allocator: a recording's memory may serve others, and is missed when somebody holds it") {
  SourceLog log;
  CachingAllocator memory(std::make_unique<CountingSource>(log));
  void* before = memory.take(MiB);
  const auto work = [&] {
    void* a = memory.take(3 * MiB);
    void* b = memory.take(2000);
    memory.give(a);
    memory.give(b);
    return a;
  };
  void* const address = work();
  const int taken = log.taken;
  memory.begin_recording();
  CHECK_EQ(work(), address);
  const int first = memory.end_recording();
  CHECK_EQ(log.taken, taken);
  memory.check_recording(first);

  memory.give(before);  // not the recording's
  void* small = memory.take(256);
  void* large = memory.take(3 * MiB);
  CHECK_EQ(large, address);
  CHECK(contains(error_of([&] { memory.check_recording(first); }), "3.0 MiB of \"other\""));
  memory.give(large);
  memory.give(small);
  memory.check_recording(first);

  memory.release_cached();  // the recording's segments stay
  CHECK_EQ(work(), address);
  CHECK_EQ(log.taken, taken);
  memory.forget_recording(first);
  memory.release_cached();
  CHECK_EQ(log.out, 0);
}

TEST_CASE("allocator: recordings that grow or keep memory are abandoned") {
  SourceLog log;
  CachingAllocator memory(std::make_unique<CountingSource>(log));
  memory.give(memory.take(MiB));
  memory.begin_recording();
  CHECK(contains(error_of([&] { memory.take(5 * MiB); }), "growth is forbidden"));
  CHECK(contains(error_of([&] { memory.begin_recording(); }), "within a recording"));
  memory.abandon_recording();
  memory.give(memory.take(5 * MiB));
  memory.begin_recording();
  void* kept = memory.take(MiB);
  CHECK(contains(error_of([&] { memory.end_recording(); }), "keeps 1.0 MiB"));
  memory.give(kept);
  memory.give(memory.take(9 * MiB));  // growth is allowed again
  memory.release_cached();
  CHECK_EQ(log.out, 0);
}

TEST_CASE("allocator: threads") {
  SourceLog log;
  CachingAllocator memory(std::make_unique<CountingSource>(log));
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&memory, &wrong, t] {
      const MemoryContext context(t % 2 ? "odd" : "even");
      for (int i = 0; i < 2000; ++i) {
        auto* p = static_cast<int*>(memory.take(64 + static_cast<size_t>(i % 7) * 100));
        *p = t * 10000 + i;
        std::this_thread::yield();
        if (*p != t * 10000 + i) ++wrong;
        memory.give(p);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(wrong, 0);
  CHECK_EQ(memory.statistics().used, 0);
  CHECK_EQ(memory.statistics().contexts.at("odd").used, 0);
  CHECK_EQ(memory.statistics().contexts.size(), 2);
}
