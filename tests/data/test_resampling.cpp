// --dataset-resampled: shards drawn with replacement, by weight, and the same again after a restart.
#include <set>

#include "data/shards.h"
#include "data/stream_order.h"
#include "tests/data/temporary_folder.h"

using namespace switchback;

namespace {

// Three shards of source a, one of source b; each holds `samples` samples.
std::shared_ptr<SampleSource> source(const TemporaryFolder& folder, std::vector<double> factors,
                                     int samples = 2) {
  for (const char* name : {"a0", "a1", "a2", "b0"}) {
    TarWriter tar(folder / (std::string(name) + ".tar"));
    for (int i = 0; i < samples; ++i) {
      const std::string key = concat(name, "_", i);
      tar.add(key + ".jpg", "image");
      tar.add(key + ".txt", "caption");
    }
    tar.finish();
  }
  SourceOptions options;
  options.data = folder / "a{0..2}.tar" + "::" + folder / "b0.tar";
  options.type = "webdataset";
  options.resampled = true;
  options.upsampling_factors = std::move(factors);
  options.warn = [](const std::string&) {};
  return open_source(options);
}

std::vector<std::string> keys(std::shared_ptr<SampleSource> from, size_t count, uint64_t seed,
                              StreamState start = {}) {
  StreamOrder order(std::move(from), {.seed = seed, .window = 8}, start);
  std::vector<std::string> found;
  uint64_t position = start.position;
  while (found.size() < count) {
    const auto group = order.next();
    for (; position < group->end() && found.size() < count; ++position) {
      const SampleLocation at = group->at(position);
      found.push_back(at.block->key(at.sample));
    }
  }
  return found;
}

}  // namespace

TEST_CASE("resampling: shares are factor times shards, the order depends on the seed only") {
  const TemporaryFolder folder;
  const auto plain = keys(source(folder, {}), 8000, 1);
  const auto weighted = keys(source(folder, {1, 6}), 8000, 1);
  const auto share_of_b = [](const std::vector<std::string>& drawn) {
    double b = 0;
    for (const std::string& key : drawn) b += key[0] == 'b';
    return b / static_cast<double>(drawn.size());
  };
  CHECK(share_of_b(plain) == doctest::Approx(1.0 / 4).epsilon(0.08));
  CHECK(share_of_b(weighted) == doctest::Approx(6.0 / 9).epsilon(0.04));
  CHECK(share_of_b(keys(source(folder, {1, 0}), 500, 1)) == 0);
  CHECK(plain == keys(source(folder, {}), 8000, 1));
  CHECK(plain != keys(source(folder, {}), 8000, 2));
  // With replacement: among the first eight shards one comes twice (four shards are there).
  CHECK(std::set<std::string>(plain.begin(), plain.begin() + 16).size() < 9);
}

TEST_CASE("resampling: a restart from any group goes on alike") {
  const TemporaryFolder folder;
  const auto whole = keys(source(folder, {2, 1}), 400, 5);
  StreamOrder order(source(folder, {2, 1}), {.seed = 5, .window = 8}, {});
  for (int i = 0; i < 20; ++i) {
    StreamState state = order.next()->state();
    state.position += static_cast<uint64_t>(i) % 4;
    const auto rest = keys(source(folder, {2, 1}), 100, 5, StreamState::parse(state.to_string()));
    CHECK(rest == std::vector<std::string>(whole.begin() + static_cast<int64_t>(state.position),
                                           whole.begin() + static_cast<int64_t>(state.position) + 100));
  }
}

TEST_CASE("resampling: data without a usable sample end in an error, not in a loop") {
  const TemporaryFolder folder;
  CHECK(contains(error_of([&] { keys(source(folder, {}, 0), 1, 0); }), "no usable sample in 4 shards"));
  CHECK(contains(error_of([&] { source(folder, {1, 2, 3}); }), "has 3 numbers, --train-data has 2 sources"));
}
