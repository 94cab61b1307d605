// thread_communicator.h: ranks that are threads of one process, on the CPU. For tests: the whole of data
// parallel training runs under a debugger, without a network.
//
//   ThreadGroup group(4);
//   group.run([](Communicator& c) { ... c.all_reduce(sum) ... });   // on 4 threads; rethrows the first error
//
// Everybody shows everybody where its data are, waits, and works on its own share of the elements.
#pragma once

#include <functional>
#include <memory>

#include "distributed/communicator.h"

namespace switchback {

class ThreadGroup {
 public:
  // A rank that waits longer than this for another fails with the numbers of the missing ones.
  explicit ThreadGroup(int world_size, double patience_seconds = 60);
  ~ThreadGroup();
  ThreadGroup(const ThreadGroup&) = delete;

  // Runs f on every rank and waits for all. When one throws, the others' waits end with an error that names
  // it, and the first exception is rethrown. Callable once: a group that failed stays failed.
  void run(const std::function<void(Communicator&)>& f);

  struct Shared;

 private:
  std::shared_ptr<Shared> shared_;
};

}  // namespace switchback
