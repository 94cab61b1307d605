#include "data/stream_order.h"

#include <algorithm>
#include <numeric>
#include <sstream>
#include <utility>

#include "runtime/check.h"
#include "runtime/philox.h"

namespace switchback {
namespace {

// Stream 0 of a pass orders its blocks, stream 1 + g the samples of group g.
PhiloxStream order_stream(uint64_t seed, uint64_t pass, uint64_t stream) {
  return PhiloxStream(seed, RandomPurpose::shuffle, pass << 24 | stream);
}

// The top bit keeps these apart from the streams of the order.
PhiloxStream stand_in_stream(uint64_t seed, uint64_t position) {
  return PhiloxStream(seed, RandomPurpose::shuffle, uint64_t{1} << 63 | position);
}

// Likewise, by the bit below it.
PhiloxStream draw_stream(uint64_t seed, uint64_t n) {
  return PhiloxStream(seed, RandomPurpose::shuffle, uint64_t{1} << 62 | n);
}

// Fisher-Yates.
void shuffle(std::vector<uint32_t>& items, PhiloxStream random) {
  for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[random.below(i)]);
}

std::vector<uint32_t> numbers(uint64_t n) {
  CHECK(n < (uint64_t{1} << 32), "a group of ", n, " samples or blocks");
  std::vector<uint32_t> items(n);
  std::iota(items.begin(), items.end(), 0u);
  return items;
}

}  // namespace

std::string StreamState::to_string() const {
  return concat(position, ' ', pass, ' ', group, ' ', first_block, ' ', group_start);
}

StreamState StreamState::parse(const std::string& text) {
  StreamState state;
  std::istringstream in(text);
  std::vector<uint64_t> values;
  for (uint64_t value; in >> value;) values.push_back(value);
  const bool ordered = values.size() == 5 && values[4] <= values[0];
  if (!in.eof() || (values.size() != 1 && !ordered))
    fail("not a position in the training data: '", text, "'");
  state.position = values[0];
  if (values.size() == 5) {
    state.pass = values[1];
    state.group = values[2];
    state.first_block = values[3];
    state.group_start = values[4];
  }
  return state;
}

SampleLocation StreamGroup::nth(uint64_t n) const {
  const auto after = std::upper_bound(starts_.begin(), starts_.end(), n);
  const size_t block = static_cast<size_t>(after - starts_.begin()) - 1;
  return {blocks_[block].get(), static_cast<int64_t>(n - starts_[block])};
}

SampleLocation StreamGroup::at(uint64_t position) const {
  CHECK(position >= start() && position < end(), "position ", position, " in the group [", start(), ", ",
        end(), ")");
  const uint64_t n = position - start();
  return nth(order_.empty() ? n : order_[n]);
}

SampleLocation StreamGroup::stand_in(uint64_t position, uint64_t attempt) const {
  // The n-th number of the position's own stream; attempts are few, so that drawing n numbers costs nothing.
  PhiloxStream random = stand_in_stream(seed_, position);
  uint64_t drawn = 0;
  for (uint64_t i = 0; i < std::min(attempt, random_attempts); ++i) drawn = random.below(size());
  return nth(attempt <= random_attempts ? drawn : (drawn + attempt - random_attempts) % size());
}

std::string StreamGroup::describe() const {
  std::string text;
  size_t others = 0;
  for (const auto& block : blocks_) {
    if (block->size() == 0) continue;
    if (text.empty())
      text = block->name();
    else
      ++others;
  }
  return others == 0 ? text : concat(text, " and ", others, " more");
}

StreamOrder::StreamOrder(std::shared_ptr<SampleSource> source, Options options, StreamState start)
    : source_(std::move(source)), options_(options), at_(start) {
  CHECK(source_ && source_->block_count() > 0, "a stream needs a source with blocks");
  if (options_.shuffle) {
    double sum = 0;
    for (double weight : source_->draw_weights()) cumulative_weights_.push_back(sum += weight);
    CHECK(!resampled() || (std::ssize(cumulative_weights_) == source_->block_count() && sum > 0),
          "weights of ", cumulative_weights_.size(), " blocks with the sum ", sum);
  }
  if (!resampled() && at_.first_block > static_cast<uint64_t>(source_->block_count())) {
    fail("the position to resume at lies behind shard ", at_.first_block, ", but the data has ",
         source_->block_count(), " shards: it is not the data that the run was started with");
  }
  pass_empty_ = at_.first_block == 0;
}

const std::vector<uint32_t>& StreamOrder::blocks_of_pass(uint64_t pass) {
  if (blocks_.empty() || blocks_pass_ != pass) {
    blocks_ = numbers(static_cast<uint64_t>(source_->block_count()));
    if (options_.shuffle) shuffle(blocks_, order_stream(options_.seed, pass, 0));
    blocks_pass_ = pass;
  }
  return blocks_;
}

uint64_t StreamOrder::blocks_in_pass() const {
  return resampled() ? ~uint64_t{0} : static_cast<uint64_t>(source_->block_count());
}

uint64_t StreamOrder::block_at(uint64_t pass, uint64_t n) {
  if (!resampled()) return blocks_of_pass(pass)[n];
  const double drawn = draw_stream(options_.seed, n).uniform_double() * cumulative_weights_.back();
  const auto after = std::upper_bound(cumulative_weights_.begin(), cumulative_weights_.end(), drawn);
  // The sum may be drawn itself, by rounding: then the last block that has a weight.
  if (after != cumulative_weights_.end()) return static_cast<uint64_t>(after - cumulative_weights_.begin());
  return static_cast<uint64_t>(
      std::lower_bound(cumulative_weights_.begin(), cumulative_weights_.end(), cumulative_weights_.back()) -
      cumulative_weights_.begin());
}

std::shared_ptr<const SampleBlock> StreamOrder::index(uint64_t block) {
  indexing_ = static_cast<int64_t>(block);
  auto indexed = source_->block(static_cast<int64_t>(block));
  indexing_ = -1;
  return indexed;
}

std::string StreamOrder::busy_with() const {
  const int64_t block = indexing_;
  return block < 0 ? "" : source_->block_name(block);
}

std::shared_ptr<const StreamGroup> StreamOrder::next() {
  while (options_.passes == 0 || at_.pass < options_.passes) {
    const uint64_t blocks = blocks_in_pass();
    uint64_t empty = 0;  // blocks without a sample, one after the other
    auto group = std::make_shared<StreamGroup>();
    group->seed_ = options_.seed;
    group->state_ = at_;
    group->state_.position = at_.group_start;
    while (at_.first_block < blocks && (group->size() == 0 || group->size() < options_.window)) {
      auto block = index(block_at(at_.pass, at_.first_block++));
      if (block->size() == 0) {
        if (resampled() && ++empty > 20 * cumulative_weights_.size() + 100) fail(source_->why_empty());
        continue;
      }
      empty = 0;
      group->starts_.push_back(group->size() + static_cast<uint64_t>(block->size()));
      group->blocks_.push_back(std::move(block));
    }
    const uint64_t position = at_.position, number = at_.group;
    at_.group_start = group->end();
    ++at_.group;
    if (at_.first_block == blocks) {
      if (group->size() == 0 && pass_empty_) fail(source_->why_empty());
      at_ = {.position = position, .pass = at_.pass + 1, .group_start = at_.group_start};
      pass_empty_ = true;
    } else {
      pass_empty_ = false;
    }
    if (group->size() == 0 || group->end() <= position)
      continue;  // the latter: walking to where a run is resumed
    if (options_.shuffle) {
      group->order_ = numbers(group->size());
      shuffle(group->order_, order_stream(options_.seed, group->state_.pass, 1 + number));
    }
    return group;
  }
  return nullptr;
}

void StreamOrder::require(uint64_t samples, const std::string& why) {
  if (resampled()) return;  // pairs come again anyway
  uint64_t found = 0;
  const std::vector<uint32_t> blocks = blocks_of_pass(at_.pass);
  for (size_t i = 0; i < blocks.size() && found < samples; ++i) {
    found += static_cast<uint64_t>(index(blocks[(i + at_.first_block) % blocks.size()])->size());
  }
  if (found == 0) fail(source_->why_empty());
  if (found < samples)
    fail(why, " is larger than the data set of ", found,
         " usable samples: a smaller one is needed, "
         "because the same pair twice in a batch would count as a false negative");
}

}  // namespace switchback
