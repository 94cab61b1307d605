// communicator.h: the same memory operation on every rank of a group.
//
// A rank is one of `world_size` training processes (in tests: threads) that run the same program; all of them
// call the same operations in the same order with the same sizes and types.
//
//   all_reduce       data (n) of every rank = Σ over ranks
//   reduce           the same, but only the root's data are defined afterwards
//   reduce_scatter   own (n) = part `rank` of Σ over ranks of all (world n)
//   all_gather       all (world n) = the own (n) of ranks 0, 1, ... one after the other
//   broadcast        data = the root's
//   shift            to (n) = from (n) of the rank before, in a ring: rank 0 gets the last one's
//   barrier          nobody goes on before everybody has come
//
// `own` may be that part of `all` itself (in place); the two do not overlap otherwise. Sums on a CPU are
// taken in order of ranks, so that they have the same bits on every rank and in every run.
//
// Order on a device: an operation starts after every kernel called before it, and may run beside kernels
// called later; until join() what it writes is not to be touched, and what it only reads is not to be written
// (nor freed). On a CPU it is done when the call returns.
#pragma once

#include <cstdint>
#include <span>

#include "runtime/view.h"

namespace switchback {

enum class Reduction : uint8_t { sum, max };

class Communicator {
 public:
  Communicator(int rank, int world_size);
  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;

  int rank() const { return rank_; }
  int world_size() const { return world_size_; }

  // Errors of all: another rank is gone, or did not come in time, or called something else: its number, the
  // operation and the cure in one line.
  void all_reduce(View data, Reduction reduction = Reduction::sum);
  void reduce(View data, int root, Reduction reduction = Reduction::sum);
  void reduce_scatter(View own, CView all, Reduction reduction = Reduction::sum);
  void all_gather(View all, CView own);
  void broadcast(View data, int root);
  // Many at once: one operation on the way, where there is such a thing.
  struct FromRoot {
    View data;
    int root;
  };
  void broadcast(std::span<const FromRoot> many);
  void shift(View to, CView from);
  virtual void barrier() {}
  // Kernels called from here on see the results of all operations so far.
  virtual void join() {}

 private:
  // Called with checked arguments and world_size > 1 only.
  virtual void run_all_reduce(View data, Reduction reduction) = 0;
  virtual void run_reduce(View data, int root, Reduction reduction) = 0;
  virtual void run_reduce_scatter(View own, CView all, Reduction reduction) = 0;
  virtual void run_all_gather(View all, CView own) = 0;
  virtual void run_broadcast(View data, int root) = 0;
  virtual void run_broadcasts(std::span<const FromRoot> many);
  virtual void run_shift(View to, CView from) = 0;

  int rank_, world_size_;
};

// A world of one: every operation is a copy at most.
Communicator& single_rank();

}  // namespace switchback
