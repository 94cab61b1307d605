#include "data/loader.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>

#include "data/image.h"
#include "data/sample_source.h"
#include "data/tokenizer.h"
#include "runtime/allocator.h"
#include "runtime/check.h"
#include "runtime/philox.h"

namespace switchback {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

constexpr size_t groups_ahead = 2;  // the current group and the next one

// A batch in the making.
struct Slot {
  Batch batch;
  int64_t assigned = 0, finished = 0;  // rows given to workers, rows done
  bool closed = false;                 // no more rows will be assigned
  std::vector<uint8_t> usable;         // (B) 0: the row was left out (evaluation)
  bool complete() const { return closed && assigned == finished; }
};

// One row of a batch: the unit of work.
struct Task {
  Slot* slot = nullptr;
  int64_t row = 0;
  uint64_t position = 0;
  std::shared_ptr<const StreamGroup> group;
};

// What a worker reuses from sample to sample, and what it is at (read by the watchdog under the mutex).
struct Worker {
  std::thread thread;
  RawSample raw;
  Image image, seen;  // decoded; transformed
  Task task;
  Clock::time_point since;
};

std::string first_line(const std::string& text) {
  const size_t start = text.find_first_not_of("\r\n");
  if (start == std::string::npos) return "";
  return text.substr(start, text.find_first_of("\r\n", start) - start);
}

}  // namespace

struct Loader::State {
  const LoaderOptions options;
  const std::shared_ptr<SampleSource> source;
  const std::shared_ptr<const Tokenizer> tokenizer;
  StreamOrder order;  // the planner's alone

  mutable std::mutex mutex;
  std::condition_variable work_changed, batch_changed, plan_changed;
  std::deque<std::shared_ptr<const StreamGroup>> groups;  // planned, in order; the first holds the next row
  std::deque<std::unique_ptr<Slot>> ring;        // first: the next batch to hand out; last: being filled
  bool stopping = false, plan_complete = false;  // plan_complete: the pass of an evaluation is planned
  uint64_t batches_started = 0, batches_done = 0;
  std::exception_ptr error;
  double wait_seconds = 0;
  std::atomic<uint64_t> replaced{0};
  struct Anchor {
    StreamState state;
    uint64_t end;
  };
  std::deque<Anchor> anchors;  // groups from the consumer's position on
  StreamState upcoming;        // what follows the last anchor

  std::vector<Worker> workers;
  std::thread planner;

  State(std::shared_ptr<SampleSource> source_, std::shared_ptr<const Tokenizer> tokenizer_,
        LoaderOptions options_)
      : options(std::move(options_)),
        source(std::move(source_)),
        tokenizer(std::move(tokenizer_)),
        order(source,
              {.seed = options.seed,
               .window = training() ? options.shuffle_window : 1,
               .shuffle = training(),
               .passes = training() ? 0u : 1u},
              options.start),
        upcoming(options.start) {}

  bool training() const { return options.mode == LoaderOptions::Mode::train; }
  uint64_t global_batch() const {
    return static_cast<uint64_t>(options.batch_size) * static_cast<uint64_t>(options.world_size);
  }
  // Position of the first row of this rank's batch number `batch`.
  uint64_t first_position(uint64_t batch) const {
    return options.start.position + batch * global_batch() +
           static_cast<uint64_t>(options.rank) * static_cast<uint64_t>(options.batch_size);
  }

  void start() {
    source->set_stopping(false);
    workers = std::vector<Worker>(static_cast<size_t>(options.workers));
    for (Worker& worker : workers)
      worker.thread = std::thread([this, &worker] { guarded([&] { work(worker); }); });
    planner = std::thread([this] { guarded([this] { plan(); }); });
  }

  void stop() {
    {
      std::lock_guard lock(mutex);
      stopping = true;
    }
    source->set_stopping(true);  // who waits for a stream stops waiting
    notify_all();
    for (Worker& worker : workers) {
      if (worker.thread.joinable()) worker.thread.join();
    }
    if (planner.joinable()) planner.join();
  }

  void notify_all() {
    work_changed.notify_all();
    plan_changed.notify_all();
    batch_changed.notify_all();
  }

  // Runs a thread's loop; its first exception ends all threads and reaches the caller of next().
  template <class F>
  void guarded(F loop) {
    try {
      loop();
    } catch (...) {
      std::lock_guard lock(mutex);
      if (!error) error = std::current_exception();
      notify_all();
    }
  }

  // Keeps two groups planned: reads the headers of shards ahead of need.
  void plan() {
    std::unique_lock lock(mutex);
    while (true) {
      plan_changed.wait(lock, [&] { return stopping || error || groups.size() < groups_ahead; });
      if (stopping || error) return;
      lock.unlock();
      auto group = order.next();
      lock.lock();
      if (!group) {
        plan_complete = true;
        notify_all();
        return;
      }
      anchors.push_back({group->state(), group->end()});
      upcoming = order.upcoming();
      groups.push_back(std::move(group));
      work_changed.notify_all();
    }
  }

  // The next row to fill, if there is room in the ring and its group is planned. Called with the mutex held.
  bool take_task(Task& task) {
    const bool fresh = ring.empty() || ring.back()->closed;
    if (fresh && ring.size() >= static_cast<size_t>(options.prefetch_batches)) return false;
    const uint64_t first = first_position(fresh ? batches_started : batches_started - 1);
    const int64_t row = fresh ? 0 : ring.back()->assigned;
    const uint64_t position = first + static_cast<uint64_t>(row);
    while (!groups.empty() && groups.front()->end() <= position) {
      groups.pop_front();
      plan_changed.notify_one();
    }
    if (groups.empty()) {
      if (plan_complete) {  // the data ends within this batch, or ended with the last one
        if (!fresh) ring.back()->closed = true;
        batch_changed.notify_all();
      }
      return false;
    }
    if (fresh) {
      ring.push_back(new_slot(first));
      ++batches_started;
    }
    Slot& slot = *ring.back();
    task = {&slot, row, position, groups.front()};
    if (row == 0) slot.batch.pass = groups.front()->state().pass;
    slot.closed = ++slot.assigned == options.batch_size;
    return true;
  }

  std::unique_ptr<Slot> new_slot(uint64_t first) {
    const MemoryContext memory("loader");
    const int64_t B = options.batch_size, S = options.image_size;
    auto slot = std::make_unique<Slot>();
    Batch& batch = slot->batch;
    batch.size = B;
    const auto room = [&](Shape shape, DType dtype) {
      return options.page_locked ? Tensor::page_locked(shape, dtype) : Tensor(shape, dtype);
    };
    batch.images = room({B, S, S, 3}, DType::u8);
    if (tokenizer) batch.tokens = room({B, tokenizer->context_length()}, DType::i32);
    batch.first_position = first;
    batch.keys.resize(static_cast<size_t>(B));
    batch.labels.assign(static_cast<size_t>(B), -1);
    if (options.keep_text || !training()) {
      batch.captions.resize(static_cast<size_t>(B));
      batch.json.resize(static_cast<size_t>(B));
    }
    slot->usable.assign(static_cast<size_t>(B), 0);
    return slot;
  }

  void work(Worker& worker) {
    std::unique_lock lock(mutex);
    while (true) {
      work_changed.wait(lock, [&] { return stopping || error || take_task(worker.task); });
      if (stopping || error) return;
      worker.since = Clock::now();
      // The next row may be ready for another worker; waking one per row taken keeps all of them busy.
      work_changed.notify_one();
      lock.unlock();
      fill_row(worker);
      lock.lock();
      Slot& slot = *worker.task.slot;
      ++slot.finished;
      worker.task = {};
      if (slot.complete()) batch_changed.notify_all();
    }
  }

  void fill_row(Worker& worker) {
    const Task& task = worker.task;
    const StreamGroup& group = *task.group;
    for (uint64_t attempt = 0;; ++attempt) {
      const SampleLocation at =
          attempt == 0 ? group.at(task.position) : group.stand_in(task.position, attempt);
      if (use(worker, at)) break;
      if (attempt == 0) ++replaced;
      if (!training()) return;
      if (attempt >= StreamGroup::random_attempts + group.size()) {
        fail("none of the ", group.size(), " samples of ", group.describe(),
             " can be used: ", source->reasons().summary());
      }
    }
    task.slot->usable[static_cast<size_t>(task.row)] = 1;
  }

  // Reads, decodes, transforms and tokenises one sample into its row; false: it cannot be used (counted).
  bool use(Worker& worker, SampleLocation at) {
    const Task& task = worker.task;
    Batch& batch = task.slot->batch;
    const size_t row = static_cast<size_t>(task.row);
    RawSample& raw = worker.raw;
    // Which of several captions: again a number that depends on seed and position only.
    raw.draw = 0;
    if (training()) {
      const uint64_t stream = uint64_t{1} << 62 | task.position;
      raw.draw = PhiloxStream(options.seed, RandomPurpose::augmentation, stream).next_u64();
    }
    at.block->read(at.sample, raw);
    if (raw.problem.empty()) {
      try {
        decode_image(worker.image, raw.image, options.decode);
      } catch (const Error& error) {
        raw.problem = "image does not decode";
        raw.detail = error.what();
      }
    }
    if (!raw.problem.empty()) {
      source->reasons().count(raw.problem, concat(at.block->name(), ": ", at.block->key(at.sample),
                                                  raw.detail.empty() ? "" : ": ", raw.detail));
      return false;
    }
    const int64_t S = options.image_size;
    if (training()) {
      PhiloxStream random(options.seed, RandomPurpose::augmentation, task.position);
      train_transform(worker.seen, worker.image, S, options.crop, random);
      change_colors(worker.seen, draw_colors(options.colors, random));
    } else {
      evaluation_transform(worker.seen, worker.image, S, options.resize_mode, options.interpolation);
    }
    const size_t image_bytes = static_cast<size_t>(S * S * 3);
    CHECK(worker.seen.pixels.size() == image_bytes, "transform gave ", worker.seen.pixels.size(), " bytes");
    std::memcpy(static_cast<uint8_t*>(batch.images.data()) + row * image_bytes, worker.seen.pixels.data(),
                image_bytes);
    if (tokenizer) {
      const size_t L = static_cast<size_t>(tokenizer->context_length());
      const auto ids = batch.tokens.span<int32_t>().subspan(row * L, L);
      if (training())
        tokenizer->encode(raw.caption, ids);
      else
        tokenizer->encode(first_line(raw.caption), ids);
    }
    batch.keys[row] = concat(at.block->name(), ':', at.block->key(at.sample));
    batch.labels[row] = raw.label;
    if (!batch.captions.empty()) {
      batch.captions[row] = raw.caption;
      batch.json[row] = raw.json;
    }
    return true;
  }

  // Waits for the first batch of the ring; null at the end of an evaluation. A long wait is explained.
  std::unique_ptr<Slot> wait_for_slot() {
    const auto start = Clock::now();
    std::unique_lock lock(mutex);
    const auto ready = [&] { return !ring.empty() && ring.front()->complete(); };
    const auto finished = [&] { return plan_complete && groups.empty() && ring.empty(); };
    const auto patience = std::chrono::duration<double>(options.stall_seconds);
    while (!batch_changed.wait_for(lock, patience, [&] { return ready() || finished() || error; })) {
      const std::string line = describe_stall(seconds_since(start));
      lock.unlock();
      options.warn ? options.warn(line) : warn_on_stderr(line);
      lock.lock();
    }
    wait_seconds += seconds_since(start);
    if (!ready()) {
      if (error) std::rethrow_exception(error);
      return nullptr;
    }
    auto slot = std::move(ring.front());
    ring.pop_front();
    ++batches_done;
    const uint64_t position =
        first_position(batches_done) - static_cast<uint64_t>(options.rank * options.batch_size);
    while (!anchors.empty() && anchors.front().end <= position) anchors.pop_front();
    work_changed.notify_one();
    return slot;
  }

  std::string describe_stall(double waited) const {
    std::string line = concat("data: waiting for a batch for ", static_cast<int64_t>(waited), " s");
    if (const std::string shard = order.busy_with(); !shard.empty()) line += ", indexing " + shard;
    for (const Worker& worker : workers) {
      if (!worker.task.group) continue;
      const SampleLocation at = worker.task.group->at(worker.task.position);
      line += concat(", ", static_cast<int64_t>(seconds_since(worker.since)), " s at ", at.block->name(), ":",
                     at.block->key(at.sample));
    }
    return line;
  }
};

namespace {

// Evaluation: moves the usable rows together and cuts the rest off.
void compact(Slot& slot) {
  Batch& batch = slot.batch;
  const size_t image_bytes = static_cast<size_t>(batch.images.size() / batch.size);
  auto* images = static_cast<uint8_t*>(batch.images.data());
  size_t kept = 0;
  for (size_t row = 0; row < static_cast<size_t>(slot.assigned); ++row) {
    if (!slot.usable[row]) continue;
    if (kept != row) {
      std::memcpy(images + kept * image_bytes, images + row * image_bytes, image_bytes);
      if (batch.tokens.defined()) {
        const size_t L = static_cast<size_t>(batch.tokens.cols());
        auto* tokens = static_cast<int32_t*>(batch.tokens.data());
        std::memcpy(tokens + kept * L, tokens + row * L, L * sizeof(int32_t));
      }
      batch.keys[kept] = std::move(batch.keys[row]);
      batch.labels[kept] = batch.labels[row];
      batch.captions[kept] = std::move(batch.captions[row]);
      batch.json[kept] = std::move(batch.json[row]);
    }
    ++kept;
  }
  if (static_cast<int64_t>(kept) == batch.size) return;
  batch.size = static_cast<int64_t>(kept);
  batch.images = batch.images.slice(0, batch.size);
  if (batch.tokens.defined()) batch.tokens = batch.tokens.slice(0, batch.size);
  batch.keys.resize(kept);
  batch.labels.resize(kept);
  batch.captions.resize(kept);
  batch.json.resize(kept);
}

}  // namespace

Loader::Loader(std::shared_ptr<SampleSource> source, std::shared_ptr<const Tokenizer> tokenizer,
               LoaderOptions options) {
  if (options.batch_size < 1) fail("the batch size must be at least 1, got ", options.batch_size);
  if (options.workers < 1) fail("the loader needs at least 1 worker thread, got ", options.workers);
  if (options.prefetch_batches < 1)
    fail("the loader needs room for at least 1 batch, got ", options.prefetch_batches);
  if (options.image_size < 1) fail("the image size must be at least 1, got ", options.image_size);
  CHECK(options.world_size >= 1 && options.rank >= 0 && options.rank < options.world_size, "rank ",
        options.rank, " of ", options.world_size);
  state_ = std::make_unique<State>(std::move(source), std::move(tokenizer), std::move(options));
  if (state_->training()) {
    state_->order.require(state_->global_batch(),
                          concat("a global batch of ", state_->global_batch(), " (batch size ",
                                 state_->options.batch_size, " x ", state_->options.world_size, " ranks)"));
  }
  state_->start();
}

Loader::~Loader() {
  if (state_) state_->stop();
}

bool Loader::next(Batch& batch) {
  batch = {};  // its memory may serve the batch that is being filled
  while (true) {
    const std::unique_ptr<Slot> slot = state_->wait_for_slot();
    if (!slot) return false;
    if (!state_->training()) compact(*slot);
    if (slot->batch.size == 0) continue;
    batch = std::move(slot->batch);
    return true;
  }
}

uint64_t Loader::position() const {
  std::lock_guard lock(state_->mutex);
  return state_->options.start.position + state_->batches_done * state_->global_batch();
}

StreamState Loader::state() const {
  const uint64_t here = position();
  std::lock_guard lock(state_->mutex);
  StreamState state = state_->anchors.empty() ? state_->upcoming : state_->anchors.front().state;
  state.position = here;
  return state;
}

LoaderStatistics Loader::statistics() const {
  LoaderStatistics statistics;
  std::lock_guard lock(state_->mutex);
  statistics.batches = state_->batches_done;
  statistics.wait_seconds = state_->wait_seconds;
  statistics.replaced = state_->replaced;
  statistics.reasons = state_->source->reasons().counts();
  return statistics;
}

}  // namespace switchback
