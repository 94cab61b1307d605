// The ids of the tokenizers: the byte tokenizer; CLIP's against open_clip's own, where the vocabulary is at
// hand.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <numeric>
#include <optional>
#include <thread>

#include "data/bpe.h"
#include "data/tokenizer.h"
#include "tests/data/temporary_folder.h"
#include "tests/data/tokenizer_golden.h"

using namespace switchback;

namespace {

constexpr int32_t kContext = 77;

// The folder of test data has CLIP's merges; without it the tests that need them are skipped, and say so.
std::optional<std::string> merges_path() {
  const char* folder = std::getenv("SWITCHBACK_TEST_DATA");
  const std::string path = std::string(folder ? folder : "") + "/clip_merges.txt.gz";
  if (folder && std::filesystem::exists(path)) return path;
  std::printf("skipped: no CLIP merges to test with (%s)\n",
              folder ? (path + " does not exist").c_str() : "SWITCHBACK_TEST_DATA is not set");
  return std::nullopt;
}

std::vector<int32_t> encode(const Tokenizer& tokenizer, std::string_view text) {
  std::vector<int32_t> ids(static_cast<size_t>(tokenizer.context_length()), -1);
  tokenizer.encode(text, ids);
  return ids;
}

// start, ids, end, padding
std::vector<int32_t> framed(const Tokenizer& tokenizer, std::vector<int32_t> ids) {
  ids.insert(ids.begin(), tokenizer.start_id());
  ids.push_back(tokenizer.end_id());
  ids.resize(static_cast<size_t>(tokenizer.context_length()), 0);
  return ids;
}

// Sets an environment variable until the end of the scope.
class Environment {
 public:
  Environment(const char* name, const std::string& value) : name_(name) {
    if (const char* old = std::getenv(name)) old_ = old;
    setenv(name, value.c_str(), 1);
  }
  ~Environment() { old_ ? setenv(name_, old_->c_str(), 1) : unsetenv(name_); }

 private:
  const char* name_;
  std::optional<std::string> old_;
};

}  // namespace

TEST_CASE("the byte tokenizer writes bytes plus one between start and end") {
  const auto tokenizer = make_byte_tokenizer(8);
  CHECK(tokenizer->vocabulary_size() == 259);
  CHECK(encode(*tokenizer, "ab\xff") == std::vector<int32_t>{257, 98, 99, 256, 258, 0, 0, 0});
  CHECK(encode(*tokenizer, "") == std::vector<int32_t>{257, 258, 0, 0, 0, 0, 0, 0});
  CHECK(encode(*tokenizer, "abcdef") == std::vector<int32_t>{257, 98, 99, 100, 101, 102, 103, 258});
  CHECK(encode(*tokenizer, "abcdefgh") == std::vector<int32_t>{257, 98, 99, 100, 101, 102, 103, 258});
  CHECK(tokenizer->end_id() == tokenizer->vocabulary_size() - 1);  // pooling takes the largest id
}

TEST_CASE("a tokenizer refuses a row of another length and a context without room") {
  const auto tokenizer = make_byte_tokenizer(8);
  std::vector<int32_t> ids(7);
  CHECK_THROWS_AS(tokenizer->encode("a", ids), Error);
  CHECK(contains(error_of([] { make_byte_tokenizer(1); }), "context length of 1"));
}

TEST_CASE("the vocabulary is found where it is said to be, and errors name the file and the cure") {
  const TemporaryFolder folder;
  const Environment no_home("HOME", folder / "home");
  const Environment nothing("SWITCHBACK_VOCABULARY", "");
  CHECK(make_tokenizer("bytes", 8)->vocabulary_size() == 259);
  const std::string missing = error_of([] { make_tokenizer("", 8); });
  CHECK(contains(missing, "scripts/fetch_vocabulary.sh"));
  CHECK(contains(missing, "--tokenizer bytes"));
  {
    const Environment bytes("SWITCHBACK_VOCABULARY", "bytes");
    CHECK(make_tokenizer("", 8)->vocabulary_size() == 259);
  }
  CHECK(contains(error_of([] { make_tokenizer("no/such/file.gz", 8); }), "no/such/file.gz"));

  const auto error_for = [&](const std::string& contents) {
    const std::string path = folder.write("wrong.txt", contents);
    const std::string error = error_of([&] { make_tokenizer(path, 8); });
    CHECK(contains(error, path));
    CHECK(contains(error, "bpe_simple_vocab_16e6.txt.gz"));
    return error;
  };
  CHECK(contains(error_for(""), "first line"));
  CHECK(contains(error_for("{\"model\": {}}"), "first line"));
  CHECK(contains(error_for("#version: 0.2\ni n\n"), "after 1 of 48894"));
  CHECK(contains(error_for("#version: 0.2\ni n t\n"), "line 2 is not two symbols"));
  CHECK(contains(error_for("#version: 0.2\ni nn\n"), "line 2 uses a symbol"));
  CHECK(contains(error_for("#version: 0.2\ni n\ni n\n"), "line 3 makes a symbol that exists"));
  CHECK(contains(error_for(std::string("\x1f\x8b\x08\0\0\0\0\0\0\3\xff\xff\xff", 13)), "cannot be read"));
}

TEST_CASE("CLIP's tokenizer gives the published ids") {
  const auto path = merges_path();
  if (!path) return;
  const auto tokenizer = make_clip_tokenizer(*path, kContext);
  CHECK(tokenizer->vocabulary_size() == 49408);
  CHECK(tokenizer->start_id() == 49406);
  CHECK(tokenizer->end_id() == 49407);
  const std::vector<std::pair<std::string_view, std::vector<int32_t>>> known = {
      {"", {}},
      {"a diagram", {320, 22697}},
      {"a dog", {320, 1929}},
      {"a cat", {320, 2368}},
      {"a photo of a tench, type of fish.", {320, 1125, 539, 320, 1149, 634, 267, 3877, 539, 2759, 269}},
      {"Hello World!", {3306, 1002, 256}},
      {"It's 2024 &amp; we're   fine", {585, 568, 273, 271, 273, 275, 261, 649, 982, 3797}},
      {"café über", {15304, 6522, 1516}},
      {"日本語 text", {39121, 44353, 34002, 508, 4160}},
      {"xxxxx 12345 ...", {44195, 272, 273, 274, 275, 276, 678}},
      {"<end_of_text> is a literal", {49407, 533, 320, 24269}},
      {"naïve don't", {1097, 35689, 563, 847, 713}},
      {"😀 smile", {7334, 3490}},
      {"A photo of a   CAT\n on the\tmat", {320, 1125, 539, 320, 2368, 525, 518, 9063}},
  };
  for (const auto& [text, ids] : known) {
    CAPTURE(text);
    CHECK(encode(*tokenizer, text) == framed(*tokenizer, ids));
  }
}

TEST_CASE("a caption that does not fit is cut and still ends in the end") {
  const auto path = merges_path();
  if (!path) return;
  const auto tokenizer = make_clip_tokenizer(*path, kContext);
  for (size_t words : {74, 75, 76, 77, 1000}) {
    std::string text;
    for (size_t i = 0; i < words; ++i) text += "cat ";
    std::vector<int32_t> expected(kContext, 0);
    const size_t kept = std::min<size_t>(words, 75);
    expected[0] = 49406;
    std::fill_n(expected.begin() + 1, kept, 2368);
    expected[kept + 1] = 49407;
    CHECK(encode(*tokenizer, text) == expected);
  }
  // One endless word: it is merged as a whole before it is cut.
  const auto ids = encode(*tokenizer, std::string(100000, 'x'));
  CHECK(ids.front() == 49406);
  CHECK(ids.back() == 49407);
}

TEST_CASE("CLIP's tokenizer equals open_clip's on every golden string") {
  const auto path = merges_path();
  if (!path) return;
  const auto tokenizer = make_clip_tokenizer(*path, kContext);
  const auto golden = read_tokenized_texts("tests/golden/tokenizer.bin.gz", kContext);
  CHECK(golden.size() >= 2000);
  // Twice: the second time most words come from the cache.
  for (int pass = 0; pass < 2; ++pass) {
    size_t differing = 0;
    for (const TokenizedText& one : golden) differing += encode(*tokenizer, one.text) != one.ids;
    CHECK(differing == 0);
  }
}

TEST_CASE("threads and tokenizers do not disturb one another") {
  const auto path = merges_path();
  if (!path) return;
  const auto tokenizer = make_clip_tokenizer(*path, kContext);
  const auto shorter = make_clip_tokenizer(*path, 16);
  const auto golden = read_tokenized_texts("tests/golden/tokenizer.bin.gz", kContext);
  std::vector<size_t> differing(4, 0);
  std::vector<std::thread> threads;
  for (size_t t = 0; t < differing.size(); ++t)
    threads.emplace_back([&, t] {
      for (size_t i = t; i < golden.size(); i += 2) {
        differing[t] += encode(*tokenizer, golden[i].text) != golden[i].ids;
        if (i % 64 == t) differing[t] += encode(*shorter, "a cat") != framed(*shorter, {320, 2368});
      }
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(std::accumulate(differing.begin(), differing.end(), size_t{0}) == 0);
}

TEST_CASE("OpenAI's layout of the merges reads as Hugging Face's does") {
  const auto path = merges_path();
  if (!path) return;
  const std::string merges = read_possibly_gzip(*path);
  const TemporaryFolder folder;
  const std::string longer =
      folder.write("bpe_simple_vocab_16e6.txt", "\"bpe_simple_vocab_16e6.txt#version: 0.2\n" +
                                                    merges.substr(merges.find('\n') + 1) + "never used\n");
  const auto ours = make_clip_tokenizer(longer, kContext), theirs = make_clip_tokenizer(*path, kContext);
  for (const char* text : {"a photo of a tench, type of fish.", "日本語 text", "&amp;lt; Ünïcödé"})
    CHECK(encode(*ours, text) == encode(*theirs, text));
}

TEST_CASE("the queue merges as the scan does, at every length") {
  const auto path = merges_path();
  if (!path) return;
  const BytePairs pairs = BytePairs::parse(read_possibly_gzip(*path), *path);
  uint32_t state = 12345;
  const auto random = [&](uint32_t below) {
    return (state = state * 1664525u + 1013904223u) / 65536 % below;
  };
  for (size_t length = 1; length < 300; ++length) {
    // Repeats and common letters, so that there is much to merge and pairs overlap.
    std::vector<int32_t> scanned(length);
    const uint32_t letters = 1 + random(26);
    for (int32_t& symbol : scanned) symbol = 'a' - '!' + static_cast<int32_t>(random(letters));
    scanned.back() += 256;
    std::vector<int32_t> queued = scanned;
    pairs.merge_by_scan(scanned);
    pairs.merge_by_queue(queued);
    REQUIRE(scanned == queued);
  }
}
