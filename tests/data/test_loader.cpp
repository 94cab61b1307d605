// The order of the stream, and the loader on top of it: same batches for any number of threads and ranks,
// resuming, replacement of broken samples, evaluation, and shutting down at any moment.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <numeric>
#include <set>
#include <thread>

#include "data/loader.h"
#include "data/sample_source.h"
#include "data/shards.h"
#include "data/tokenizer.h"
#include "tests/data/temporary_folder.h"

using namespace switchback;

namespace {

// Blocks of the given sizes whose samples are numbered through; sample n is a flat picture of n % 256.
class NumberedSource final : public SampleSource {
 public:
  explicit NumberedSource(std::vector<int64_t> sizes) : sizes_(std::move(sizes)) {
    for (int value = 0; value < 256; ++value) pictures_.push_back(flat_png(static_cast<uint8_t>(value)));
  }
  int64_t block_count() const override { return static_cast<int64_t>(sizes_.size()); }
  std::string block_name(int64_t block) const override { return "block" + std::to_string(block); }
  std::optional<uint64_t> declared_count() const override { return std::nullopt; }
  std::string why_empty() const override { return "nothing here"; }
  std::shared_ptr<const SampleBlock> block(int64_t block) override {
    ++indexed;
    return std::make_shared<Block>(*this, block);
  }

  std::atomic<int> indexed{0}, alive{0}, most_alive{0}, reads{0};
  std::set<int64_t> broken;  // samples that do not decode
  std::function<void(int64_t sample)> on_read = [](int64_t) {};

 private:
  struct Block final : SampleBlock {
    Block(NumberedSource& source, int64_t block)
        : source_(source), size_(source.sizes_[static_cast<size_t>(block)]), name_(source.block_name(block)) {
      first_ = std::accumulate(source.sizes_.begin(), source.sizes_.begin() + block, int64_t{0});
      const int alive = ++source_.alive;
      if (alive > source_.most_alive) source_.most_alive = alive;
    }
    ~Block() override { --source_.alive; }
    int64_t size() const override { return size_; }
    const std::string& name() const override { return name_; }
    std::string key(int64_t sample) const override { return std::to_string(first_ + sample); }
    void read(int64_t sample, RawSample& to) const override {
      const int64_t n = first_ + sample;
      ++source_.reads;
      source_.on_read(n);
      to.clear();
      static const std::vector<uint8_t> garbage = {1, 2, 3};
      to.image = source_.broken.contains(n) ? garbage : source_.pictures_[static_cast<size_t>(n % 256)];
      to.caption = "caption " + std::to_string(n);
      to.label = n;
    }
    NumberedSource& source_;
    int64_t size_, first_;
    std::string name_;
  };

  std::vector<int64_t> sizes_;
  std::vector<std::vector<uint8_t>> pictures_;
};

std::shared_ptr<const Tokenizer> byte_tokenizer() {
  static const std::shared_ptr<const Tokenizer> tokenizer = make_byte_tokenizer(16);
  return tokenizer;
}

LoaderOptions small_options() {
  LoaderOptions options;
  options.batch_size = 6;
  options.image_size = 4;
  options.shuffle_window = 20;
  options.seed = 3;
  options.warn = [](const std::string&) {};
  return options;
}

struct Contents {
  std::vector<int64_t> samples;  // the labels, which are the numbers of the samples
  std::vector<uint8_t> pixels;
  std::vector<int32_t> tokens;
  bool operator==(const Contents&) const = default;
};

Contents contents_of(const Batch& batch) {
  const auto pixels = batch.images.span<uint8_t>();
  const auto tokens = batch.tokens.span<int32_t>();
  return {batch.labels, {pixels.begin(), pixels.end()}, {tokens.begin(), tokens.end()}};
}

std::vector<Contents> take(Loader& loader, int batches) {
  std::vector<Contents> taken;
  Batch batch;
  for (int i = 0; i < batches; ++i) {
    REQUIRE(loader.next(batch));
    taken.push_back(contents_of(batch));
  }
  return taken;
}

const std::vector<int64_t> uneven_sizes = {5, 9, 0, 13, 1, 17, 8, 4};  // 57 samples

}  // namespace

TEST_CASE("order: every pass holds every sample once, in an order of its own") {
  const auto source = std::make_shared<NumberedSource>(uneven_sizes);
  for (uint64_t window : {1, 20, 1000}) {
    StreamOrder order(source, {.seed = 1, .window = window}, {});
    std::shared_ptr<const StreamGroup> group;
    std::vector<std::vector<std::string>> passes(4);
    for (uint64_t position = 0; position < 4 * 57; ++position) {
      if (!group || position == group->end()) {
        const uint64_t end = group ? group->end() : 0;
        group = order.next();
        REQUIRE(group->start() == end);
        const bool last_of_pass = group->end() % 57 == 0;
        CHECK((group->size() >= window || last_of_pass));
      }
      const SampleLocation at = group->at(position);
      passes[position / 57].push_back(at.block->key(at.sample));
      CHECK(group->state().pass == position / 57);
    }
    for (auto pass : passes) CHECK(std::set<std::string>(pass.begin(), pass.end()).size() == 57);
    CHECK(passes[0] != passes[1]);
    CHECK(passes[1] != passes[2]);
  }
}

TEST_CASE("order: a group's state starts the stream there without walking") {
  const auto source = std::make_shared<NumberedSource>(uneven_sizes);
  StreamOrder whole(source, {.seed = 1, .window = 20}, {});
  for (int i = 0; i < 12; ++i) {
    const auto group = whole.next();
    StreamState state = group->state();
    state.position = group->end() - 1;
    CHECK(StreamState::parse(state.to_string()) == state);
    const int before = source->indexed;
    StreamOrder resumed(source, {.seed = 1, .window = 20}, state);
    StreamOrder walked(source, {.seed = 1, .window = 20}, {.position = state.position});
    const auto same = resumed.next();
    CHECK(source->indexed - before <= 8);
    const auto also = walked.next();
    for (const auto& other : {same, also}) {
      REQUIRE(other->start() == group->start());
      REQUIRE(other->end() == group->end());
      for (uint64_t p = group->start(); p < group->end(); ++p) {
        CHECK(other->at(p).block->key(other->at(p).sample) == group->at(p).block->key(group->at(p).sample));
      }
      const auto a = other->stand_in(state.position, 3), b = group->stand_in(state.position, 3);
      CHECK(a.block->key(a.sample) == b.block->key(b.sample));
    }
  }
  CHECK(StreamState::parse("7") == StreamState{.position = 7});
  for (const char* bad : {"", "x", "1 2", "1 2 3 4 5 6", "1 0 0 0 2", "-"}) {
    CHECK(contains(error_of([&] { StreamState::parse(bad); }), "not a position"));
  }
  CHECK(contains(error_of([&] { StreamOrder(source, {}, {.first_block = 99}); }),
                 "not the data that the run was started with"));
}

TEST_CASE("order: stand-ins reach every sample of the group") {
  StreamOrder order(std::make_shared<NumberedSource>(uneven_sizes), {.seed = 1, .window = 20}, {});
  const auto group = order.next();
  std::set<std::string> met;
  for (uint64_t attempt = StreamGroup::random_attempts;
       attempt < StreamGroup::random_attempts + group->size(); ++attempt) {
    const auto at = group->stand_in(group->start() + 2, attempt);
    met.insert(at.block->key(at.sample));
  }
  CHECK(met.size() == group->size());
}

TEST_CASE("loader: the same batches for any number of threads") {
  const auto source = std::make_shared<NumberedSource>(uneven_sizes);
  std::vector<Contents> first;
  for (int workers : {1, 4, 3}) {
    LoaderOptions options = small_options();
    options.workers = workers;
    options.prefetch_batches = workers;
    options.image_size = 9;
    Loader loader(source, byte_tokenizer(), options);
    const auto batches = take(loader, 30);
    if (first.empty()) first = batches;
    CHECK((batches == first));
  }
  CHECK(first[0].samples != first[1].samples);
  // Tokens and pixels belong to the sample: "caption N", and a flat picture stays flat.
  for (const Contents& batch : first) {
    for (size_t row = 0; row < 6; ++row) {
      std::vector<int32_t> ids(16);
      byte_tokenizer()->encode("caption " + std::to_string(batch.samples[row]), ids);
      CHECK(std::equal(ids.begin(), ids.end(), batch.tokens.begin() + static_cast<long>(row) * 16));
      CHECK(batch.pixels[row * 9 * 9 * 3] == batch.samples[row] % 256);
    }
  }
  LoaderOptions other_seed = small_options();
  other_seed.seed = 4;
  Loader loader(source, byte_tokenizer(), other_seed);
  CHECK(take(loader, 1)[0].samples != first[0].samples);
}

TEST_CASE("loader: the ranks of any world size share the same stream") {
  const auto source = std::make_shared<NumberedSource>(uneven_sizes);
  source->broken = {3, 17, 40};
  std::vector<std::vector<int64_t>> steps;  // of world size 1
  for (int world_size : {1, 2, 4}) {
    std::vector<std::vector<int64_t>> global(20);
    for (int rank = 0; rank < world_size; ++rank) {
      LoaderOptions options = small_options();
      options.batch_size = 12 / world_size;
      options.rank = rank;
      options.world_size = world_size;
      Loader loader(source, byte_tokenizer(), options);
      for (auto& step : global) {
        CHECK(loader.position() == 12 * static_cast<uint64_t>(&step - global.data()));
        const auto samples = take(loader, 1)[0].samples;
        step.insert(step.end(), samples.begin(), samples.end());
      }
    }
    if (steps.empty()) steps = global;
    CHECK(global == steps);  // in order: rank r has the r-th part
  }
}

TEST_CASE("loader: a pass covers every sample exactly once") {
  const auto source = std::make_shared<NumberedSource>(uneven_sizes);
  LoaderOptions options = small_options();
  options.batch_size = 19;
  Loader loader(source, byte_tokenizer(), options);
  for (int pass = 0; pass < 3; ++pass) {
    std::set<int64_t> met;
    for (const Contents& batch : take(loader, 3)) met.insert(batch.samples.begin(), batch.samples.end());
    CHECK(met.size() == 57);
  }
  CHECK(loader.statistics().replaced == 0);
  CHECK(loader.statistics().batches == 9);
}

TEST_CASE("loader: resuming continues the stream") {
  const auto source = std::make_shared<NumberedSource>(uneven_sizes);
  source->broken = {5, 6, 50};
  Loader whole(source, byte_tokenizer(), small_options());
  const auto batches = take(whole, 40);
  Loader running(source, byte_tokenizer(), small_options());
  for (int done = 0; done < 30; ++done) {
    LoaderOptions options = small_options();
    options.start = StreamState::parse(running.state().to_string());
    CHECK(options.start.position == static_cast<uint64_t>(done * 6));
    options.workers = 1 + done % 3;
    if (done % 2) options.start = {.position = options.start.position};  // a position alone will do
    Loader resumed(source, byte_tokenizer(), options);
    const auto rest = take(resumed, 4);
    for (int i = 0; i < 4; ++i)
      REQUIRE((rest[static_cast<size_t>(i)] == batches[static_cast<size_t>(done + i)]));
    take(running, 1);
  }
}

TEST_CASE("loader: samples that cannot be used are replaced and counted") {
  const auto source = std::make_shared<NumberedSource>(std::vector<int64_t>{30});
  for (int64_t n = 0; n < 30; ++n) {
    if (n != 11 && n != 23) source->broken.insert(n);
  }
  std::vector<std::string> warnings;
  source->reasons().set_warn([&](const std::string& line) { warnings.push_back(line); });
  LoaderOptions options = small_options();
  options.workers = 1;
  Loader loader(source, byte_tokenizer(), options);
  for (const Contents& batch : take(loader, 5)) {
    for (int64_t n : batch.samples) CHECK((n == 11 || n == 23));
  }
  CHECK(loader.statistics().replaced >= 28);
  CHECK(loader.statistics().reasons.at("image does not decode") >= 28);
  CHECK(warnings.size() <= 6);  // 1, 2, 3, 10, 100, 1000
  CHECK(contains(warnings[0], "data: image does not decode: block0: "));
}

TEST_CASE("loader: nothing usable is one clear error") {
  const auto source = std::make_shared<NumberedSource>(std::vector<int64_t>{10, 10});
  for (int64_t n = 0; n < 20; ++n) source->broken.insert(n);
  Loader loader(source, byte_tokenizer(), small_options());
  Batch batch;
  const std::string error = error_of([&] { loader.next(batch); });
  CHECK(contains(error, "none of the 20 samples of block"));
  CHECK(contains(error, "image does not decode"));
  CHECK(error_of([&] { loader.next(batch); }) == error);  // and again
  CHECK(error_of([&] {
          Loader(std::make_shared<NumberedSource>(std::vector<int64_t>{0, 0}), nullptr, small_options());
        }) == "nothing here");
}

TEST_CASE("loader: a batch larger than the data set") {
  const auto source = std::make_shared<NumberedSource>(std::vector<int64_t>{5, 6});
  LoaderOptions options = small_options();
  options.batch_size = 4;
  options.world_size = 3;
  CHECK(contains(
      error_of([&] { Loader(source, nullptr, options); }),
      "a global batch of 12 (batch size 4 x 3 ranks) is larger than the data set of 11 usable samples"));
  options.batch_size = 11;
  options.world_size = 1;
  CHECK(error_of([&] { Loader(source, nullptr, options); }) == "nothing was thrown");
}

TEST_CASE("loader: memory stays bounded by the ring and two groups") {
  const auto source = std::make_shared<NumberedSource>(std::vector<int64_t>(200, 4));
  LoaderOptions options = small_options();
  options.batch_size = 5;
  options.prefetch_batches = 3;
  options.workers = 3;
  Loader loader(source, byte_tokenizer(), options);
  for (int wait = 0; source->reads < 15 && wait < 2000; ++wait)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  CHECK(source->reads == 15);  // a full ring, and no more
  CHECK(source->alive <= 10);  // two groups of five blocks
  take(loader, 150);
  CHECK(source->most_alive <= 16);  // and the group that is being planned or still read
}

TEST_CASE("loader: an error while reading ends the stream with that error") {
  const auto source = std::make_shared<NumberedSource>(std::vector<int64_t>{100});
  source->on_read = [&](int64_t) {
    if (source->reads > 20) fail("shard vanished");
  };
  Loader loader(source, nullptr, small_options());
  Batch batch;
  const std::string error = error_of([&] {
    while (loader.next(batch)) {
    }
  });
  CHECK(error == "shard vanished");
}

TEST_CASE("loader: shutting down at any moment") {
  const auto source = std::make_shared<NumberedSource>(uneven_sizes);
  for (int i = 0; i < 20; ++i) {
    LoaderOptions options = small_options();
    options.workers = 4;
    options.prefetch_batches = 1 + i % 3;
    Loader loader(source, byte_tokenizer(), options);
    if (i > 5) take(loader, i % 5);
  }
  CHECK(source->alive == 0);
}

TEST_CASE("loader: a stall is explained, not silent") {
  const auto source = std::make_shared<NumberedSource>(std::vector<int64_t>{30});
  std::atomic<bool> stuck{true};
  source->on_read = [&](int64_t n) {
    while (stuck && n == 7) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  };
  LoaderOptions options = small_options();
  options.batch_size = 30;
  options.stall_seconds = 0.02;
  std::string warning;
  options.warn = [&](const std::string& line) {
    warning = line;
    stuck = false;
  };
  Loader loader(source, nullptr, options);
  Batch batch;
  CHECK(loader.next(batch));
  CHECK(contains(warning, "data: waiting for a batch for 0 s"));
  CHECK(contains(warning, "at block0:7"));
  CHECK(loader.statistics().wait_seconds >= 0.02);
}

TEST_CASE("loader: evaluation is one pass in sequence without what cannot be used") {
  const auto source = std::make_shared<NumberedSource>(uneven_sizes);
  source->broken = {0, 7, 8, 9, 10, 11, 12, 13, 56};
  for (int world_size : {1, 2}) {
    std::vector<int64_t> samples;
    for (int rank = 0; rank < world_size; ++rank) {
      LoaderOptions options = small_options();
      options.mode = LoaderOptions::Mode::evaluate;
      options.batch_size = 4;
      options.rank = rank;
      options.world_size = world_size;
      Loader loader(source, byte_tokenizer(), options);
      Batch batch;
      while (loader.next(batch)) {
        CHECK(batch.images.shape() == Shape{batch.size, 4, 4, 3});
        CHECK(batch.tokens.shape() == Shape{batch.size, 16});
        CHECK(static_cast<int64_t>(batch.keys.size()) == batch.size);
        const Contents contents = contents_of(batch);
        for (size_t row = 0; row < contents.samples.size(); ++row) {
          CHECK(batch.captions[row] == "caption " + std::to_string(contents.samples[row]));
          CHECK(contents.pixels[row * 48] == contents.samples[row]);
          samples.push_back(contents.samples[row]);
        }
      }
      CHECK_FALSE(loader.next(batch));
      CHECK(loader.statistics().replaced == (world_size == 1 ? 9u : loader.statistics().replaced));
    }
    std::sort(samples.begin(), samples.end());
    std::vector<int64_t> expected;
    for (int64_t n = 0; n < 57; ++n) {
      if (!source->broken.contains(n)) expected.push_back(n);
    }
    CHECK(samples == expected);
  }
}

TEST_CASE("loader: shards, end to end") {
  const TemporaryFolder folder;
  for (int i = 0; i < 3; ++i) write_shard(folder / (std::to_string(i) + ".tar"), i * 10, 10);
  TarWriter captions(folder / "multi.tar");
  captions.add("a.png", flat_png(9));
  captions.add("a.txt", "first line\nsecond");
  captions.finish();
  write_shard(folder / "empty.tar", 0, 0);
  const Warn quiet = [](const std::string&) {};

  LoaderOptions options = small_options();
  options.keep_text = true;
  Loader loader(open_source({.data = folder / "{0..2}.tar::" + (folder / "empty.tar"), .warn = quiet}),
                byte_tokenizer(), options);
  std::set<std::string> met;
  for (int i = 0; i < 5; ++i) {
    Batch batch;
    REQUIRE(loader.next(batch));
    met.insert(batch.captions.begin(), batch.captions.end());
    CHECK(contains(batch.keys[0], ".tar:s0000"));
  }
  CHECK(met.size() == 30);
  CHECK(loader.statistics().reasons == std::map<std::string, uint64_t>{{"shard without a usable sample", 1}});

  // Zero-shot: image and label; retrieval: the caption's first line as tokens, all of it as text.
  options.mode = LoaderOptions::Mode::evaluate;
  Loader labels(open_source({.data = folder / "0.tar",
                             .needs = {.caption = false, .label = true, .read_json = true},
                             .warn = quiet}),
                nullptr, options);
  Batch batch;
  REQUIRE(labels.next(batch));
  CHECK(batch.labels == std::vector<int64_t>{0, 1, 2, 3, 4, 5});
  CHECK(batch.json[3] == "{\"n\": 3}");
  CHECK_FALSE(batch.tokens.defined());
  REQUIRE(labels.next(batch));
  CHECK(batch.size == 4);
  CHECK_FALSE(labels.next(batch));
  Loader lines(open_source({.data = folder / "multi.tar", .warn = quiet}), byte_tokenizer(), options);
  REQUIRE(lines.next(batch));
  CHECK(batch.captions[0] == "first line\nsecond");
  std::vector<int32_t> ids(16);
  byte_tokenizer()->encode("first line", ids);
  CHECK(std::equal(ids.begin(), ids.end(), batch.tokens.span<int32_t>().begin()));
  Loader nothing(open_source({.data = folder / "empty.tar", .warn = quiet}), nullptr, options);
  CHECK(contains(error_of([&] { nothing.next(batch); }), "no usable sample in 1 shard"));
}

TEST_CASE("loader: CSV and synthetic data") {
  const TemporaryFolder folder;
  std::string table = "filepath,title\n";
  for (int i = 0; i < 8; ++i) {
    const auto png = flat_png(static_cast<uint8_t>(i));
    table += folder.write(std::to_string(i) + ".png", std::string(png.begin(), png.end())) + ",number " +
             std::to_string(i) + "\n";
  }
  table += (folder / "none.png") + ",missing\n";
  const Warn quiet = [](const std::string&) {};
  LoaderOptions options = small_options();
  options.batch_size = 9;
  Loader csv(open_source({.data = folder.write("t.csv", table), .csv_separator = ",", .warn = quiet}),
             byte_tokenizer(), options);
  CHECK(take(csv, 1)[0].pixels.size() == 9 * 48);
  CHECK(csv.statistics().reasons.at("image file cannot be read") >= 1);
  Loader synthetic(
      open_source(
          {.type = "synthetic", .synthetic_samples = 100'000, .synthetic_image_size = 5, .warn = quiet}),
      byte_tokenizer(), options);
  const Contents black = take(synthetic, 3)[2];
  CHECK(std::all_of(black.pixels.begin(), black.pixels.end(), [](uint8_t pixel) { return pixel == 0; }));
  CHECK(contains(error_of([] { open_source({.data = "folder/data"}); }), "cannot tell the kind of data"));
  CHECK(contains(error_of([] { open_source({.data = "x", .type = "parquet"}); }),
                 "unknown --dataset-type 'parquet'"));
}

TEST_CASE("loader: the sets of SWITCHBACK_TEST_DATA, whole") {
  const char* packed = std::getenv("SWITCHBACK_TEST_DATA");
  if (!packed) {
    MESSAGE("skipped: SWITCHBACK_TEST_DATA is not set");
    return;
  }
  const TemporaryFolder folder;
  REQUIRE(std::system(concat("sh '", packed, "/unpack.sh' '", folder / "sets", "'").c_str()) == 0);
  const std::map<std::string, uint64_t> sets = {{"emoji/train/{000000..000004}.tar", 11765},
                                                {"emoji/val/000000.tar", 621},
                                                {"clipart/train/{000000..000003}.tar", 1600}};
  for (const auto& [pattern, samples] : sets) {
    const auto source = open_source({.data = folder / ("sets/" + pattern)});
    CHECK(source->count() == samples);
    LoaderOptions options = small_options();
    options.mode = LoaderOptions::Mode::evaluate;
    options.batch_size = 100;
    Loader loader(source, byte_tokenizer(), options);
    uint64_t met = 0;
    for (Batch batch; loader.next(batch);) met += static_cast<uint64_t>(batch.size);
    CHECK(met == samples);
    CHECK(source->reasons().summary() == "");
  }
}
