// Shards that are no files: commands, the standard input; captions out of .json; other suffixes.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <set>

#include "data/input_file.h"
#include "data/loader.h"
#include "data/shards.h"
#include "data/tokenizer.h"
#include "tests/data/temporary_folder.h"

using namespace switchback;

namespace {

std::shared_ptr<SampleSource> open(
    const std::string& data, SampleNeeds needs = {}, Warn warn = [](const std::string&) {}) {
  SourceOptions options;
  options.data = data;
  options.needs = std::move(needs);
  options.warn = std::move(warn);
  return open_source(options);
}

LoaderOptions small_batches() {
  LoaderOptions options;
  options.batch_size = 5;
  options.image_size = 8;
  options.seed = 3;
  options.warn = [](const std::string&) {};
  return options;
}

std::vector<std::string> first_captions(std::shared_ptr<SampleSource> source, LoaderOptions options,
                                        int batches) {
  options.keep_text = true;
  Loader loader(std::move(source), nullptr, options);
  std::vector<std::string> captions;
  Batch batch;
  for (int i = 0; i < batches; ++i) {
    loader.next(batch);
    captions.insert(captions.end(), batch.captions.begin(), batch.captions.end());
  }
  return captions;
}

}  // namespace

TEST_CASE("streams: a command's output is a shard like the file") {
  const TemporaryFolder folder;
  write_shard(folder / "0.tar", 0, 7);
  write_shard(folder / "1.tar", 7, 6);
  const std::string path = folder / "";
  const auto files = first_captions(open(folder / "{0..1}.tar"), small_batches(), 8);
  CHECK(first_captions(open("pipe:cat " + path + "{0..1}.tar"), small_batches(), 8) == files);
  CHECK(first_captions(open("pipe:gzip -c " + path + "{0..1}.tar | gzip -dc"), small_batches(), 8) == files);
  setenv("WDS_HERE", (folder / "").c_str(), 1);
  CHECK(first_captions(open("pipe:cat ${HERE}{0..1}.tar"), small_batches(), 8) == files);
  CHECK(first_captions(open("${HERE}{0..1}.tar"), small_batches(), 8) == files);
  CHECK(open("pipe:true")->streamed());
  CHECK_FALSE(open(folder / "0.tar")->streamed());
  CHECK_FALSE(open("pipe:true")->declared_count().has_value());
}

TEST_CASE("streams: a command that fails is an error with its status") {
  const auto error = [](const std::string& data) {
    return error_of([&] { Loader(open(data), nullptr, small_batches()); });
  };
  CHECK(contains(error("pipe:exit 3"), "the command ended with status 3"));
  CHECK(contains(error("pipe:no-such-program-at-all 2>/dev/null"), "status 127 (not found)"));
  CHECK(contains(error("pipe:echo garbage"), "pipe:echo garbage"));
}

TEST_CASE("streams: the standard input is read once and served to every pass") {
  const TemporaryFolder folder;
  write_shard(folder / "0.tar", 0, 7);
  const int saved = dup(0);
  REQUIRE(freopen((folder / "0.tar").c_str(), "r", stdin) != nullptr);
  const auto captions = first_captions(open("-"), small_batches(), 9);
  dup2(saved, 0);
  close(saved);
  CHECK_EQ(std::set<std::string>(captions.begin(), captions.end()).size(), 7);
}

TEST_CASE("streams: one that stalls is named, and does not keep the program from ending") {
  const TemporaryFolder folder;
  write_shard(folder / "0.tar", 0, 20);
  std::string said;
  LoaderOptions options = small_batches();
  options.mode = LoaderOptions::Mode::evaluate;
  options.stall_seconds = 0.2;
  options.warn = [&](const std::string& line) { said += line; };
  const std::string cat = "cat " + folder / "0.tar";
  Batch batch;
  {
    Loader loader(open("pipe:sleep 2; " + cat), nullptr, options);
    CHECK(loader.next(batch));
    CHECK(contains(said, "indexing pipe:sleep 2"));
  }
  const auto start = std::chrono::steady_clock::now();
  {
    Loader loader(open("pipe:" + cat + "::pipe:sleep 600"), nullptr, options);
    for (int i = 0; i < 4; ++i) CHECK(loader.next(batch));  // the first shard; then the second one is awaited
  }
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(120));
}

TEST_CASE("shards: fewer of them than threads") {
  const TemporaryFolder folder;
  write_shard(folder / "0.tar", 0, 12);
  LoaderOptions options = small_batches();
  options.batch_size = 12;
  options.workers = 8;
  const auto captions = first_captions(open(folder / "0.tar"), options, 1);
  CHECK_EQ(std::set<std::string>(captions.begin(), captions.end()).size(), 12);
}

TEST_CASE("shards: captions from .json, drawn by weight, the same for the same seed") {
  const TemporaryFolder folder;
  {
    TarWriter tar(folder / "0.tar");
    for (int i = 0; i < 6; ++i) {
      tar.add(key_of(i) + ".png", flat_png(1));
      tar.add(key_of(i) + ".json", i == 4   ? std::string("[]")
                                   : i == 5 ? std::string(R"({"short": 7})")
                                   : i == 3 ? std::string(R"({"long": "only long", "short": null})")
                                            : std::string(R"({"short": "s", "long": "l", "key": 3})"));
    }
    tar.finish();
  }
  SampleNeeds needs;
  needs.json_captions = {"short", "long"};
  const auto share = [&](std::vector<double> weights, uint64_t seed) {
    needs.json_caption_weights = std::move(weights);
    LoaderOptions options = small_batches();
    options.seed = seed;
    const auto captions = first_captions(open(folder / "0.tar", needs), options, 400);
    double shorts = 0, longs = 0;
    for (const std::string& c : captions) shorts += c == "s", longs += c == "l";
    return shorts / (shorts + longs);
  };
  CHECK(share({}, 1) == doctest::Approx(0.5).epsilon(0.1));
  CHECK(share({1, 3}, 1) == doctest::Approx(0.25).epsilon(0.15));
  CHECK(share({1, 0}, 1) == 1);
  CHECK(share({}, 7) == share({}, 7));
  CHECK(share({}, 7) != share({}, 8));
  const auto source = open(folder / "0.tar", needs);
  first_captions(source, small_batches(), 10);
  const auto counts = source->reasons().counts();
  CHECK(counts.count(".json is no JSON object") == 1);
  CHECK(counts.count("no caption in .json") == 1);
}

TEST_CASE("shards: other suffixes, in order of preference") {
  const TemporaryFolder folder;
  {
    TarWriter tar(folder / "0.tar");
    tar.add("a.small.png", flat_png(1));
    tar.add("a.big.png", flat_png(2));
    tar.add("a.alt.txt", "alternative");
    tar.add("a.txt", "plain");
    tar.finish();
  }
  SampleNeeds needs;
  needs.image_suffixes = suffixes_of("big.png;.Small.PNG");
  needs.caption_suffixes = suffixes_of("alt.txt;txt");
  CHECK(needs.image_suffixes == std::vector<std::string>{"big.png", "small.png"});
  RawSample raw;
  open(folder / "0.tar", needs)->block(0)->read(0, raw);
  CHECK(raw.caption == "alternative");
  CHECK(std::vector<uint8_t>(raw.image.begin(), raw.image.end()) == flat_png(2));
}
