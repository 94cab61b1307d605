// parallel_for: every element once, the same ranges whoever runs them, nested, from many threads, with
// exceptions.
#include <atomic>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "runtime/check.h"
#include "runtime/environment_number.h"
#include "runtime/parallel.h"

#undef CHECK  // from here on it is doctest's
#include <doctest/doctest.h>

using namespace switchback;

namespace {

struct Threads {  // sets the number of threads for one test
  explicit Threads(int n) : before(cpu_threads()) { set_cpu_threads(n); }
  ~Threads() { set_cpu_threads(before); }
  int before;
};

std::set<std::pair<int64_t, int64_t>> ranges_of(int64_t count, int64_t grain) {
  std::mutex mutex;
  std::set<std::pair<int64_t, int64_t>> ranges;
  parallel_for(count, grain, [&](int64_t from, int64_t to) {
    const std::lock_guard lock(mutex);
    ranges.emplace(from, to);
  });
  return ranges;
}

}  // namespace

TEST_CASE("parallel_for: every element is visited exactly once") {
  for (int threads : {1, 2, 3, 7}) {
    const Threads use(threads);
    CHECK_EQ(cpu_threads(), threads);
    for (int64_t count : {0, 1, 2, 3, 5, 27, 28, 29, 100, 1001}) {
      for (int64_t grain : {0, 1, 2, 10, 5000}) {
        std::vector<std::atomic<int>> visits(static_cast<size_t>(count));
        parallel_for(count, grain, [&](int64_t from, int64_t to) {
          for (int64_t i = from; i < to; ++i) ++visits[static_cast<size_t>(i)];
        });
        for (const auto& v : visits) REQUIRE_EQ(v, 1);
      }
    }
  }
}

TEST_CASE("parallel_for: ranges respect the grain and do not depend on who is busy") {
  const Threads use(3);
  const auto ranges = ranges_of(1000, 90);
  CHECK_EQ(ranges.size(), 11);
  for (const auto& [from, to] : ranges) CHECK_GE(to - from, 90);
  CHECK(ranges_of(1000, 90) == ranges);
  parallel_for(2, 1, [&](int64_t, int64_t) {  // nested: serial, in the same ranges
    const auto inside = ranges_of(1000, 90);
    if (inside != ranges) throw std::runtime_error("nested ranges differ");
  });
  const auto huge = ranges_of(int64_t{1} << 62, 1);
  CHECK_EQ(huge.size(), 12);
  CHECK_EQ(huge.rbegin()->second, int64_t{1} << 62);
}

TEST_CASE("parallel_for: other threads do take part") {
  const Threads use(2);
  std::mutex mutex;
  std::set<std::thread::id> ids;
  // Chunks wait until two threads are inside (or a generous time is over).
  parallel_for(8, 1, [&](int64_t, int64_t) {
    for (int i = 0; i < 2000; ++i) {
      {
        const std::lock_guard lock(mutex);
        ids.insert(std::this_thread::get_id());
        if (ids.size() == 2) return;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  });
  CHECK_EQ(ids.size(), 2);
  CHECK_EQ(ids.count(std::this_thread::get_id()), 1);
}

TEST_CASE("parallel_for: the first exception reaches the caller and the pool survives it") {
  const Threads use(3);
  for (int round = 0; round < 50; ++round) {
    CHECK_THROWS_WITH_AS(parallel_for(100, 1,
                                      [](int64_t from, int64_t to) {
                                        if (from <= 50 && 50 < to) fail("row 50 is bad");
                                      }),
                         "row 50 is bad", Error);
    std::atomic<int64_t> sum{0};
    parallel_for(100, 1, [&](int64_t from, int64_t to) { sum += to - from; });
    REQUIRE_EQ(sum, 100);
  }
  CHECK_THROWS_AS(parallel_for(1, 1, [](int64_t, int64_t) { fail("serial"); }), Error);
  CHECK_THROWS_AS(set_cpu_threads(0), Error);
}

TEST_CASE("parallel_for: many short loops from several threads at the same time") {
  const Threads use(3);
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int t = 0; t < 3; ++t) {
    callers.emplace_back([&wrong] {
      for (int i = 1; i < 1500; ++i) {
        std::atomic<int64_t> sum{0};
        parallel_for(i, 1, [&](int64_t from, int64_t to) {
          int64_t part = 0;
          for (int64_t k = from; k < to; ++k) part += k;
          sum += part;
        });
        if (sum != int64_t{i} * (i - 1) / 2) ++wrong;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK_EQ(wrong, 0);
}

TEST_CASE("a number from the environment: unset, right, or one line that says what stood there") {
  const char* name = "SWITCHBACK_TEST_NUMBER";
  unsetenv(name);
  CHECK(!environment_number(name, 0, 64));
  for (int value : {0, 7, 64}) {
    setenv(name, std::to_string(value).c_str(), 1);
    CHECK(environment_number(name, 0, 64) == value);
  }
  for (const char* wrong : {"", " 7", "7 ", "7x", "x", "-1", "65", "1e1", "99999999999999999999"}) {
    setenv(name, wrong, 1);
    const std::string line =
        concat(name, " is '", wrong, "': it must be a whole number from 0 to 64, a hint");
    CHECK_THROWS_WITH_AS(environment_number(name, 0, 64, ", a hint"), line.c_str(), Error);
  }
  unsetenv(name);
}
