// data_parallel.h: the gradients of all ranks added up, beside the backward pass or behind it.
//
// Beside: a part of the model, one transformer block, is one bucket: a contiguous range of the arena's
// gradients (the towers' other parameters are a few ranges each). As soon as the backward pass has left a
// part for the last time, its bucket starts to travel; the kernels of the parts below run meanwhile
// (communicator.h: on a GPU on another stream). Behind: the whole arena travels at once when all gradients
// are there, and nothing runs beside it. Which one is faster is the links' doing, and is measured
// (Overlap::automatic). Nothing is averaged: losses are shares already (autograd/ops.h).
//
//   DataParallel ranks(arena, communicator, {});
//   ranks.begin_backward(parts);   // instead of the arena's; parts: how often each tower runs (--accum-freq)
//   tape().backward(loss);
//   ranks.finish_backward();       // now every rank's arena holds the sum of all gradients
//
// sharded (ZeRO-1): rank r needs the sums only where its shard of the arena lies, elements [r n, (r + 1) n)
// of the flat buffers, n = elements / world: buckets are reduced to the rank, or the two ranks, that own
// them, or the whole arena is reduce-scattered. share_values() then brings everybody's new values to
// everybody.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "distributed/communicator.h"
#include "nn/parameter.h"

namespace switchback {

// Do gradients travel beside the backward pass? `automatic`: where they are faster beside it, by the
// bandwidth that an all-reduce has now, on these ranks (data_parallel.cpp has the arithmetic).
enum class Overlap : uint8_t { automatic, on, off };
Overlap find_overlap(const std::string& name);  // auto, on, off; else an error that names --overlap-reduce

class DataParallel {
 public:
  struct Options {
    bool bf16 = false;     // gradients travel rounded to bf16: half the bytes; sums of f32 arenas only
    bool sharded = false;  // the arena's elements must be a multiple of world size (ParameterArena::allocate)
    Overlap overlap = Overlap::automatic;
  };

  // Both must outlive this. World size 1: everything here is the arena's own doing.
  DataParallel(ParameterArena& arena, Communicator& ranks, Options options);
  ~DataParallel();
  DataParallel(const DataParallel&) = delete;

  void begin_backward(int64_t parts = 1);
  void finish_backward();

  // All ranks get rank 0's masters, and their values.
  void broadcast_parameters();
  // Sharded, after the optimizer's update: all ranks get the new values of every shard, and what is made of
  // them. Low-precision weights travel as codes where the arena's can, and then their values, which nobody
  // reads, stay as they were; else as masters, of which every rank makes them.
  void share_values();
  // Sharded: all ranks get the masters of every shard (before a checkpoint).
  void share_masters();

  int64_t shard_size() const { return shard_size_; }
  int64_t shard_start() const { return shard_size_ * ranks_.rank(); }

  // Do gradients travel beside the backward pass?
  bool overlaps() const { return overlaps_; }
  // An all-reduce of these ranks, as measured for Overlap::automatic; 0 bytes: not measured.
  struct Measured {
    double bytes = 0, seconds = 0;
  };
  Measured measured() const { return measured_; }

  // For tests and profiles: names of the buckets in the order in which they started in the last backward
  // pass; empty where they travel behind it.
  const std::vector<std::string>& order() const { return order_; }

 private:
  struct Range {
    int64_t from, to;  // elements of the flat buffers
  };
  struct Bucket {
    std::string part;
    std::vector<size_t> segments;
    std::vector<Range> ranges;
    int64_t passes_left = 0;  // before its gradients are final
    bool started = false;
  };
  void part_done(std::string_view part);
  void start(Bucket& bucket);
  void reduce_whole();
  void share_codes();
  bool links_are_fast();

  ParameterArena& arena_;
  Communicator& ranks_;
  Options options_;
  int64_t shard_size_;
  bool overlaps_ = true;
  Measured measured_;
  std::vector<Bucket> buckets_;
  std::vector<Range> uncoded_;  // of the arena: what has no codes, when codes travel
  std::vector<std::string> order_;
  Tensor rounded_;  // (elements) bf16, with Options::bf16
};

}  // namespace switchback
