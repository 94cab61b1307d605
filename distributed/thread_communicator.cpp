#include "distributed/thread_communicator.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "distributed/rank_order.h"

namespace switchback {

struct ThreadGroup::Shared {
  Shared(int size, double patience)
      : world_size(size), patience_seconds(patience), places(size), at(size, 0) {}

  const int world_size;
  const double patience_seconds;
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<void*> places;  // of every rank's data in the operation that runs
  std::vector<int64_t> at;    // meetings that each rank has come to
  std::string trouble;        // why nobody can go on

  // Returns when all ranks have come to this meeting.
  void meet(int rank, const char* op) {
    std::unique_lock lock(mutex);
    const int64_t meeting = ++at[rank];
    changed.notify_all();
    const auto everybody = [&] {
      return !trouble.empty() || std::ranges::all_of(at, [&](int64_t n) { return n >= meeting; });
    };
    if (!changed.wait_for(lock, std::chrono::duration<double>(patience_seconds), everybody)) {
      std::string missing;
      for (int r = 0; r < world_size; ++r)
        if (at[r] < meeting) missing += concat(missing.empty() ? "" : ", ", r);
      trouble = concat("rank ", missing, " of ", world_size, " did not come to ", op, " within ",
                       patience_seconds, " s");
      changed.notify_all();
    }
    if (!trouble.empty()) fail(trouble);
  }

  void leave_with(const std::string& why) {
    const std::lock_guard lock(mutex);
    if (trouble.empty()) trouble = why;
    changed.notify_all();
  }
};

namespace {

class ThreadCommunicator final : public Communicator {
 public:
  ThreadCommunicator(int rank, std::shared_ptr<ThreadGroup::Shared> shared)
      : Communicator(rank, shared->world_size), shared_(std::move(shared)) {}

  void barrier() override { shared_->meet(rank(), "barrier"); }

 private:
  // Everybody's data are in place, and stay there until the next meeting.
  std::vector<const void*> show(const void* data, const char* op) {
    shared_->places[rank()] = const_cast<void*>(data);
    shared_->meet(rank(), op);
    return {shared_->places.begin(), shared_->places.end()};
  }
  void done(const char* op) { shared_->meet(rank(), op); }

  // Elements of `count` that this rank combines.
  int64_t share_begin(int64_t count, int rank) const { return count * rank / world_size(); }

  void run_all_reduce(View data, Reduction reduction) override {
    const std::vector<const void*> parts = show(data.data, "all_reduce");
    const int64_t from = share_begin(data.size(), rank()),
                  count = share_begin(data.size(), rank() + 1) - from;
    const size_t width = size_of(data.dtype);
    std::vector<char> combined(static_cast<size_t>(count) * width);
    combine_in_rank_order(combined.data(), parts, from, count, data.dtype, reduction);
    for (const void* part : parts)  // nobody else reads or writes these elements
      copy_bytes(static_cast<char*>(const_cast<void*>(part)) + static_cast<size_t>(from) * width,
                 combined.data(), combined.size());
    done("all_reduce");
  }

  void run_reduce(View data, int root, Reduction reduction) override {
    const std::vector<const void*> parts = show(data.data, "reduce");
    if (rank() == root) combine_in_rank_order(data.data, parts, 0, data.size(), data.dtype, reduction);
    done("reduce");
  }

  void run_reduce_scatter(View own, CView all, Reduction reduction) override {
    const std::vector<const void*> parts = show(all.data, "reduce_scatter");
    std::vector<char> combined(own.bytes());  // in place, others still read what stands here
    combine_in_rank_order(combined.data(), parts, own.size() * rank(), own.size(), own.dtype, reduction);
    done("reduce_scatter");
    copy_bytes(own.data, combined.data(), combined.size());
  }

  void run_all_gather(View all, CView own) override {
    const std::vector<const void*> parts = show(own.data, "all_gather");
    for (int r = 0; r < world_size(); ++r) {
      char* to = static_cast<char*>(all.data) + static_cast<size_t>(r) * own.bytes();
      if (to != parts[r]) copy_bytes(to, parts[r], own.bytes());
    }
    done("all_gather");
  }

  void run_broadcast(View data, int root) override {
    const std::vector<const void*> parts = show(data.data, "broadcast");
    if (rank() != root) copy_bytes(data.data, parts[root], data.bytes());
    done("broadcast");
  }

  void run_shift(View to, CView from) override {
    const std::vector<const void*> parts = show(from.data, "shift");
    copy_bytes(to.data, parts[(rank() + world_size() - 1) % world_size()], to.bytes());
    done("shift");
  }

  std::shared_ptr<ThreadGroup::Shared> shared_;
};

}  // namespace

ThreadGroup::ThreadGroup(int world_size, double patience_seconds)
    : shared_(std::make_shared<Shared>(world_size, patience_seconds)) {
  CHECK(world_size >= 1, "a group of ", world_size, " ranks");
}

ThreadGroup::~ThreadGroup() = default;

void ThreadGroup::run(const std::function<void(Communicator&)>& f) {
  std::mutex mutex;
  std::exception_ptr first;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < shared_->world_size; ++rank) {
    threads.emplace_back([&, rank] {
      std::string why;
      try {
        ThreadCommunicator communicator(rank, shared_);
        return f(communicator);
      } catch (const std::exception& error) {
        why = concat("rank ", rank, " failed: ", error.what());
        const std::lock_guard lock(mutex);
        if (!first) first = std::current_exception();
      }
      shared_->leave_with(why);
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (first) std::rethrow_exception(first);
}

}  // namespace switchback
