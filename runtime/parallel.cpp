// parallel.cpp: a pool of threads that waits for one loop at a time.
//
// The loop is cut into chunks (up to four a thread, so that a thread that the system delays does not hold up
// the others); the caller and the workers claim them one by one from an atomic counter. A worker that finds
// nothing spins for some microseconds, since a training step is a dense row of such loops, and sleeps after
// that.
//
// A loop lives on its caller's stack. Workers enter and leave it under the pool's mutex, and the caller first
// closes it to newcomers and then waits for those inside, so nobody touches it after parallel_for returns.
#include "runtime/parallel.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "runtime/check.h"

namespace switchback {
namespace {

constexpr int chunks_per_thread = 4;
constexpr int spins = 2000;  // about 20-80 microseconds

void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// The cores of the affinity mask, or fewer when the control group has a quota (containers).
int usable_cores() {
  int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  cpu_set_t mask;
  if (sched_getaffinity(0, sizeof mask, &mask) == 0) cores = std::max(1, CPU_COUNT(&mask));
  std::ifstream file("/sys/fs/cgroup/cpu.max");  // "200000 100000": quota and period, or "max 100000"
  double quota = 0, period = 0;
  if (file >> quota >> period && quota > 0 && period > 0) {
    cores = std::min(cores, std::max(1, static_cast<int>(quota / period + 0.5)));
  }
  return cores;
}

int initial_threads() {
  const char* text = std::getenv("SWITCHBACK_CPU_THREADS");
  if (!text || !*text) return usable_cores();
  char* end = nullptr;
  const long threads = std::strtol(text, &end, 10);
  if (*end || threads < 1 || threads > 1024) {
    fail("SWITCHBACK_CPU_THREADS=", text, ": must be a whole number from 1 to 1024");
  }
  return static_cast<int>(threads);
}

struct Loop {
  const std::function<void(int64_t, int64_t)>& f;
  int64_t count, chunks;
  std::atomic<int64_t> next{0};
  std::mutex mutex;  // guards error
  std::exception_ptr error;

  // Chunk i is [count i / chunks, count (i + 1) / chunks), without the overflow.
  int64_t begin_of(int64_t i) const { return count / chunks * i + count % chunks * i / chunks; }

  void work() {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < chunks;) {
      try {
        f(begin_of(i), begin_of(i + 1));
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!error) error = std::current_exception();
        next = chunks;  // the rest is not worth starting
      }
    }
  }
};

thread_local bool inside_loop = false;

class Pool {
 public:
  Pool() : threads_(initial_threads()) {}

  int threads() const { return threads_.load(std::memory_order_relaxed); }

  void set_threads(int threads) {
    const std::lock_guard one_loop(busy_);
    stop_workers();
    threads_ = threads;
  }

  // False: another thread's loop has the pool; nothing was done.
  bool run(Loop& loop) {
    const std::unique_lock one_loop(busy_, std::try_to_lock);
    if (!one_loop) return false;
    if (workers_.empty()) start_workers();
    {
      const std::lock_guard lock(mutex_);
      loop_ = &loop;
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    inside_loop = true;
    loop.work();
    inside_loop = false;
    std::unique_lock lock(mutex_);
    loop_ = nullptr;
    for (int i = 0; i < spins && active_ > 0; ++i) {
      lock.unlock();
      pause_briefly();
      lock.lock();
    }
    finished_.wait(lock, [&] { return active_ == 0; });
    return true;
  }

 private:
  void start_workers() {
    stopping_ = false;
    for (int i = 1; i < threads(); ++i) workers_.emplace_back([this] { serve(); });
  }

  void stop_workers() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
    workers_.clear();
  }

  void serve() {
    inside_loop = true;  // a loop inside a loop is serial
    uint64_t seen = 0;
    std::unique_lock lock(mutex_);
    while (true) {
      if (stopping_) return;
      seen = generation_.load(std::memory_order_relaxed);
      if (Loop* loop = loop_) {
        ++active_;
        lock.unlock();
        loop->work();
        lock.lock();
        if (--active_ == 0) finished_.notify_one();
      }
      lock.unlock();
      for (int i = 0; i < spins && generation_.load(std::memory_order_acquire) == seen; ++i) pause_briefly();
      lock.lock();
      wake_.wait(lock, [&] { return generation_.load(std::memory_order_relaxed) != seen; });
    }
  }

  std::atomic<int> threads_;
  std::mutex busy_;  // held by the thread whose loop is running
  std::vector<std::thread> workers_;

  std::mutex mutex_;  // guards the rest
  std::condition_variable wake_, finished_;
  std::atomic<uint64_t> generation_{0};  // counts loops; atomic so that workers may spin on it
  Loop* loop_ = nullptr;
  int active_ = 0;  // workers inside loop_
  bool stopping_ = false;
};

Pool& pool() {
  static Pool* const instance = new Pool;  // never destroyed: static objects may still compute at exit
  return *instance;
}

}  // namespace

int cpu_threads() { return pool().threads(); }

void set_cpu_threads(int threads) {
  if (threads < 1 || threads > 1024) fail("number of CPU threads ", threads, ": must be from 1 to 1024");
  CHECK(!inside_loop, "the number of threads cannot change inside a parallel loop");
  pool().set_threads(threads);
}

void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t from, int64_t to)>& f) {
  if (count <= 0) return;
  const int threads = cpu_threads();
  const int64_t most = threads == 1 ? 1 : int64_t{threads} * chunks_per_thread;
  Loop loop{f, count, std::clamp<int64_t>(count / std::max<int64_t>(grain, 1), 1, most)};
  if (loop.chunks == 1) {
    f(0, count);
  } else if (inside_loop || !pool().run(loop)) {
    loop.work();
  }
  if (loop.error) std::rethrow_exception(loop.error);
}

}  // namespace switchback
