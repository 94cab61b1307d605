#include "nn/data_parallel.h"

#include <algorithm>

#include "kernels/transfer.h"

namespace switchback {
namespace {

// Beside the backward pass an all-reduce takes multiprocessors and memory bandwidth from kernels that would
// use both. On two H200 (docs/benchmarks/h200x2.md) the step of ViT-L-14 became 8 ms longer for 1.71 GB of
// gradients: as long as if they had travelled alone at 216 GB/s. Links that are faster carry them in less
// time behind the backward pass (NVLink there: 327 GB/s, 5 ms), slower ones (eight GPUs, PCIe, a network)
// take longer than they disturb.
constexpr double fast_enough = 200e9;  // bytes of an all-reduce per second
constexpr double latency = 0.5e-3;     // seconds: of small models, which travel faster in one piece

}  // namespace

Overlap find_overlap(const std::string& name) {
  if (name == "auto") return Overlap::automatic;
  if (name == "on") return Overlap::on;
  if (name == "off") return Overlap::off;
  fail("--overlap-reduce is ", name, ": it must be auto, on or off");
}

DataParallel::DataParallel(ParameterArena& arena, Communicator& ranks, Options options)
    : arena_(arena), ranks_(ranks), options_(options) {
  const int64_t elements = arena.masters().size();
  CHECK(elements > 0, "data parallel training comes after ParameterArena::allocate()");
  CHECK(!options.sharded || elements % ranks.world_size() == 0, elements, " elements cannot be cut into ",
        ranks.world_size(), " equal shards: see ParameterArena::allocate()");
  shard_size_ = options.sharded ? elements / ranks.world_size() : elements;
  const auto& segments = arena.segments();
  const auto add = [this](std::vector<Range>& to, Range range) {  // joined within a shard
    if (!to.empty() && to.back().to == range.from && range.from % shard_size_ != 0)
      to.back().to = range.to;
    else
      to.push_back(range);
  };
  for (size_t i = 0; i < segments.size(); ++i) {
    const int64_t from = segments[i].from, to = from + ParameterArena::padded(segments[i]);
    const std::string part = part_of(segments[i].name);
    auto bucket = std::ranges::find(buckets_, part, &Bucket::part);
    if (bucket == buckets_.end()) bucket = buckets_.insert(buckets_.end(), Bucket{part, {}, {}, 0, false});
    bucket->segments.push_back(i);
    add(bucket->ranges, {from, to});
    if (arena.codes_travel() && !arena.has_codes(i)) add(uncoded_, {from, to});
  }
  if (ranks.world_size() == 1) return;
  if (options.bf16 && arena.gradients().dtype() == DType::f32)
    rounded_ = Tensor({elements}, DType::bf16, arena.device()), kernels(arena.device()).fill(rounded_, 0);
  if (options.overlap == Overlap::automatic && arena.device().kind == Device::cuda)
    overlaps_ = !links_are_fast();
  else
    overlaps_ = options.overlap != Overlap::off;
  if (overlaps_) arena.listen([this](std::string_view part) { part_done(part); });
}

// Of the gradients' own memory, which holds zeros before the first step. The slowest rank's word counts: all
// of them must do the same.
bool DataParallel::links_are_fast() {
  constexpr int64_t most = int64_t{64} << 20;  // elements: 256 MiB take 1 ms on NVLink, 40 ms on a network
  const Tensor some = arena_.gradients().part(0, {std::min(most, arena_.gradients().size())});
  Kernels& k = kernels(arena_.device());
  k.fill(some, 0);
  double seconds = 0;
  for (int i = 0; i < 3; ++i) {  // the first ones connect
    const auto begin = k.mark();
    ranks_.all_reduce(some);
    ranks_.join();
    seconds = k.mark()->seconds_since(*begin);
  }
  const Tensor slowest = to_device(Tensor::of<double>({1}, {seconds}), arena_.device());
  ranks_.all_reduce(slowest, Reduction::max);
  ranks_.join();
  seconds = number(slowest);
  const auto bytes = static_cast<double>(CView(some).bytes());
  measured_ = {bytes, seconds};
  return seconds < latency + bytes / fast_enough;
}

DataParallel::~DataParallel() {
  if (ranks_.world_size() > 1 && overlaps_) arena_.listen({});
}

void DataParallel::begin_backward(int64_t parts) {
  arena_.begin_backward();
  order_.clear();
  for (Bucket& b : buckets_) {
    b.passes_left = parts;
    b.started = false;
  }
}

void DataParallel::part_done(std::string_view part) {
  const auto bucket = std::ranges::find(buckets_, part, &Bucket::part);
  CHECK(bucket != buckets_.end(), "no parameter belongs to the part ", part);
  if (--bucket->passes_left == 0) start(*bucket);
}

void DataParallel::start(Bucket& bucket) {
  bucket.started = true;
  order_.push_back(bucket.part);
  if (ranks_.world_size() == 1) return;
  for (size_t segment : bucket.segments)
    arena_.finish_gradient(segment);  // 0 where nobody wrote: it travels, too
  const Tensor& travels = rounded_.defined() ? rounded_ : arena_.gradients();
  for (const Range& range : bucket.ranges) {
    if (rounded_.defined())
      kernels(arena_.device())
          .cast(rounded_.part(range.from, {range.to - range.from}),
                arena_.gradients().part(range.from, {range.to - range.from}));
    if (!options_.sharded) {
      ranks_.all_reduce(travels.part(range.from, {range.to - range.from}));
      continue;
    }
    for (int64_t from = range.from; from < range.to;) {
      const int64_t owner = from / shard_size_, to = std::min(range.to, (owner + 1) * shard_size_);
      ranks_.reduce(travels.part(from, {to - from}), static_cast<int>(owner));
      from = to;
    }
  }
}

// The whole arena in one operation.
void DataParallel::reduce_whole() {
  arena_.finish_backward();  // 0 where nobody wrote: it travels, too
  const Tensor& travels = rounded_.defined() ? rounded_ : arena_.gradients();
  if (rounded_.defined()) kernels(arena_.device()).cast(rounded_, arena_.gradients());
  if (options_.sharded)
    ranks_.reduce_scatter(travels.part(shard_start(), {shard_size_}), travels);
  else
    ranks_.all_reduce(travels);
}

void DataParallel::finish_backward() {
  if (ranks_.world_size() == 1) return arena_.finish_backward();
  if (!overlaps_) reduce_whole();
  for (Bucket& b : buckets_)  // parts that took no part
    if (overlaps_ && !b.started) start(b);
  ranks_.join();
  if (!rounded_.defined()) return;
  Kernels& k = kernels(arena_.device());
  if (options_.sharded)
    k.cast(arena_.gradients().part(shard_start(), {shard_size_}),
           rounded_.part(shard_start(), {shard_size_}));
  else
    k.cast(arena_.gradients(), rounded_);
}

void DataParallel::broadcast_parameters() {
  ranks_.broadcast(arena_.masters(), 0);
  ranks_.join();
  arena_.publish_masters();
}

void DataParallel::share_values() {
  if (!options_.sharded) return;
  if (arena_.codes_travel()) return share_codes();
  if (!arena_.values().defined() || arena_.prepares_weights()) {  // low-precision weights are made of masters
    share_masters();
    arena_.publish_masters();
    return;
  }
  ranks_.all_gather(arena_.values(), arena_.values().part(shard_start(), {shard_size_}));
  for (const auto& s : arena_.segments())  // scalars, so none lies in two shards
    if (s.full_precision) ranks_.broadcast(arena_.master_of(s), static_cast<int>(s.from / shard_size_));
  ranks_.join();
}

void DataParallel::share_codes() {
  arena_.prepare_weights_within(shard_start(), shard_size_);
  ranks_.all_gather(arena_.codes(), arena_.codes().part(shard_start(), {shard_size_}));
  std::vector<Communicator::FromRoot> rest;
  for (int rank = 0; rank < ranks_.world_size(); ++rank)
    if (const Tensor scales = arena_.scales_within(shard_size_ * rank, shard_size_); scales.defined())
      rest.push_back({scales, rank});
  const Tensor& values = arena_.values().defined() ? arena_.values() : arena_.masters();
  for (const Range& range : uncoded_)
    rest.push_back(
        {values.part(range.from, {range.to - range.from}), static_cast<int>(range.from / shard_size_)});
  for (const auto& s : arena_.segments())
    if (s.full_precision) rest.push_back({arena_.master_of(s), static_cast<int>(s.from / shard_size_)});
  ranks_.broadcast(rest);
  ranks_.join();
  arena_.finish_weights_outside(shard_start(), shard_size_);
}

void DataParallel::share_masters() {
  if (options_.sharded)
    ranks_.all_gather(arena_.masters(), arena_.masters().part(shard_start(), {shard_size_}));
  ranks_.join();
}

}  // namespace switchback
