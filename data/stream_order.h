// stream_order.h: which sample is where in the endless training stream.
//
// The stream is pass after pass over the data. A position (a 64-bit count of samples since the start of
// training) names one sample, whatever the number of ranks and threads:
//
//   pass p     the blocks (shards) are permuted by Philox(seed, p)
//   group g    consecutive blocks of that order, as many as hold at least `window` samples, are mixed:
//              their samples are permuted by Philox(seed, p, g)
//   step t     takes positions [t G, (t + 1) G), G = batch x world size; rank r the part [t G + r B, + B)
//
// So every pass holds every sample exactly once, resuming is knowing a position, and only the headers of the
// current and the next group are in memory. A data set smaller than the window is one perfectly mixed group.
//
// A source with draw weights (--dataset-resampled) has one endless pass: its n-th block is drawn with
// replacement by Philox(seed, n). The same pair may come twice in a batch then.
//
// Where a group starts depends on the sizes of all blocks before it. StreamState therefore carries, beside
// the position, the group that holds it: resuming in epoch 30 indexes one group, not thirty epochs.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/sample_source.h"

namespace switchback {

struct StreamState {
  uint64_t position = 0;     // of the next sample
  uint64_t pass = 0;         // the group that holds it: its pass,
  uint64_t group = 0;        // its number within the pass,
  uint64_t first_block = 0;  // where it starts in the pass's order of blocks,
  uint64_t group_start = 0;  // and the position of its first sample (<= position)
  friend bool operator==(const StreamState&, const StreamState&) = default;

  std::string to_string() const;                      // "position pass group first_block group_start"
  static StreamState parse(const std::string& text);  // a position alone will do: it is walked to
};

struct SampleLocation {
  const SampleBlock* block = nullptr;
  int64_t sample = 0;
};

class StreamGroup {
 public:
  uint64_t start() const { return state_.group_start; }
  uint64_t end() const { return state_.group_start + size(); }
  uint64_t size() const { return starts_.back(); }
  const StreamState& state() const { return state_; }  // position = start
  SampleLocation at(uint64_t position) const;
  // A stand-in for a sample that cannot be used: attempt 1, 2, ... draw from this group, depending on (seed,
  // position, attempt) only; from attempt `random_attempts` on, they walk through the whole group.
  static constexpr uint64_t random_attempts = 32;
  SampleLocation stand_in(uint64_t position, uint64_t attempt) const;
  std::string describe() const;  // "shard a.tar and 3 more"

 private:
  friend class StreamOrder;
  SampleLocation nth(uint64_t n) const;  // n-th sample of the blocks laid end to end

  StreamState state_;
  uint64_t seed_ = 0;
  std::vector<std::shared_ptr<const SampleBlock>> blocks_;
  std::vector<uint64_t> starts_{0};  // (blocks + 1): samples before each block
  std::vector<uint32_t> order_;      // (samples) permutation; empty: in sequence
};

class StreamOrder {
 public:
  struct Options {
    uint64_t seed = 0;
    uint64_t window = 16384;
    bool shuffle = true;
    uint64_t passes = 0;  // 0: endless
  };
  StreamOrder(std::shared_ptr<SampleSource> source, Options options, StreamState start);

  // The next group; null after the last pass. Errors: a whole pass without a usable sample.
  std::shared_ptr<const StreamGroup> next();
  // Fails when a pass has fewer than `samples` samples (indexing only as many blocks as needed).
  void require(uint64_t samples, const std::string& why);
  StreamState upcoming() const { return at_; }  // where the group that next() will return starts, or later
  std::string busy_with() const;                // the block being indexed, for the watchdog; any thread

 private:
  const std::vector<uint32_t>& blocks_of_pass(uint64_t pass);
  bool resampled() const { return !cumulative_weights_.empty(); }
  uint64_t blocks_in_pass() const;               // resampled: no end
  uint64_t block_at(uint64_t pass, uint64_t n);  // the n-th block of a pass
  std::shared_ptr<const SampleBlock> index(uint64_t block);

  std::shared_ptr<SampleSource> source_;
  Options options_;
  StreamState at_;                // position: where the stream was started; the rest: the next group
  bool pass_empty_ = true;        // no sample so far in the pass of at_
  std::vector<uint32_t> blocks_;  // order of the blocks in blocks_pass_
  uint64_t blocks_pass_ = ~uint64_t{0};
  std::vector<double> cumulative_weights_;  // (blocks) sums of the draw weights; empty: not resampled
  std::atomic<int64_t> indexing_{-1};
};

}  // namespace switchback
