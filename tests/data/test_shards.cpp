// Patterns, the grouping rule, and what is wrong with shards on the web.
#include "data/input_file.h"
#include "data/shards.h"
#include "data/utf8_repair.h"
#include "tests/data/temporary_folder.h"

using namespace switchback;
using Paths = std::vector<std::string>;
using Counts = std::map<std::string, uint64_t>;

namespace {

std::string text(std::span<const uint8_t> bytes) { return {bytes.begin(), bytes.end()}; }

// Members as "name", or "name=contents"; contents default to the name.
std::string shard_of(const std::string& path, const Paths& members) {
  TarWriter tar(path);
  for (const std::string& member : members) {
    const size_t equals = member.find('=');
    tar.add(member.substr(0, equals), equals == std::string::npos ? member : member.substr(equals + 1));
  }
  tar.finish();
  return path;
}

}  // namespace

TEST_CASE("shards: braces") {
  CHECK(expand_braces("a.tar") == Paths{"a.tar"});
  CHECK(expand_braces("{8..11}") == Paths{"8", "9", "10", "11"});
  CHECK(expand_braces("d/{0008..0010}.tar") == Paths{"d/0008.tar", "d/0009.tar", "d/0010.tar"});
  CHECK(expand_braces("{3..1}") == Paths{"3", "2", "1"});
  CHECK(expand_braces("{00..10..5}") == Paths{"00", "05", "10"});
  CHECK(expand_braces("{a,b}{1..2}") == Paths{"a1", "a2", "b1", "b2"});
  CHECK(expand_braces("x{a,b{1..2},{c,d}}y") == Paths{"xay", "xb1y", "xb2y", "xcy", "xdy"});
  CHECK(expand_braces("{a,}") == Paths{"a", ""});
  CHECK(expand_braces("{-1..1}") == Paths{"-1", "0", "1"});
  for (const char* literal : {"{a}", "{", "}", "a{b", "{}", "{a..b}x", "}{"})
    CHECK(expand_braces(literal) == Paths{literal});
  CHECK(contains(error_of([] { expand_braces("{0..99999999999}"); }), "more than"));
  CHECK(contains(error_of([] { expand_braces("{1..9999}{1..9999}{1..9999}"); }), "more than"));
}

TEST_CASE("shards: a pattern names its first missing file") {
  const TemporaryFolder folder;
  for (const char* name : {"a/0.tar", "a/1.tar", "b/x.tar"}) folder.write(name, "");
  const std::string a = folder / "a", b = folder / "b";
  CHECK(expand_shards(a + "/{0..1}.tar::" + b + "/x.tar") ==
        std::vector<Paths>{{a + "/0.tar", a + "/1.tar"}, {b + "/x.tar"}});
  const auto error = [](const std::string& pattern) { return error_of([&] { expand_shards(pattern); }); };
  CHECK(contains(error(a + "/{0..9}.tar"), "8 of 10 files do not exist, the first is " + a + "/2.tar"));
  CHECK(contains(error(b + "/x.tar::" + a + "/{7,8}.tar"),
                 "2 of 2 files do not exist, the first is " + a + "/7.tar"));
  CHECK(contains(error(a + "/7.tar"), "1 of 1 file does not exist"));
  CHECK(contains(error(a), "is a directory: name its shards"));
  CHECK(contains(error(a + "/*.tar"), "* and ? are not expanded"));
  CHECK(contains(error(""), "empty shard pattern"));
}

TEST_CASE("shards: key and suffix of a member") {
  const auto split = [](std::string_view name) {
    const MemberName member = split_member_name(name);
    return std::string(member.key) + "|" + member.suffix;
  };
  CHECK(split("000.jpg") == "000|jpg");
  CHECK(split("000.seg.PNG") == "000|seg.png");
  CHECK(split("a.b/c.d/000.txt") == "a.b/c.d/000|txt");
  CHECK(split("README") == "|");
  CHECK(split(".hidden") == "|");
  CHECK(split("a/.hidden.jpg") == "|");
}

TEST_CASE("shards: neighbours of one key are a sample, the rest is counted") {
  const TemporaryFolder folder;
  const std::string path =
      shard_of(folder / "s.tar",
               {"__meta__/x.jpg", "a.jpg",      "a.txt",   "a.json",  // a sample
                "b.seg.png",      "b.txt",                            // no image: the suffix is seg.png
                "c.JPG",          "d.txt=late", "c.txt",  // not neighbours: no caption, no image, no image
                "e.txt",          "e.png",      "e.jpg",   "README",  // jpg is preferred
                "f.webp",         "f.txt=1",    "f.txt=2", "f.webp",  // a suffix again: two samples
                "g.png=",         "g.txt",                            // 0 bytes
                "h/i.jpeg",       "h/i.txt=",   "j.jpg",   "j.txt=  \n", "k.cls=3"});
  Reasons reasons;
  const ShardIndex index(path, {}, std::make_shared<OpenFiles>(), reasons);
  Paths keys;
  for (int64_t i = 0; i < index.size(); ++i) keys.push_back(index.key(i));
  CHECK(keys == Paths{"a", "e", "f", "f", "j"});
  CHECK(reasons.counts() == Counts{{"sample without an image", 4},
                                   {"sample without a caption", 1},
                                   {"image of 0 bytes", 1},
                                   {"caption is empty", 1}});
  RawSample sample;
  index.read(0, sample);
  CHECK(text(sample.image) == "a.jpg");
  CHECK(sample.caption == "a.txt");
  CHECK(sample.json.empty());
  index.read(1, sample);
  CHECK(text(sample.image) == "e.jpg");
  index.read(2, sample);
  CHECK(sample.caption == "1");
  index.read(3, sample);
  CHECK(sample.caption == "2");
  index.read(4, sample);
  CHECK(sample.problem == "caption is empty");
}

TEST_CASE("shards: images with labels, and JSON") {
  const TemporaryFolder folder;
  const std::string path =
      shard_of(folder / "s.tar", {"a.png", "a.cls=7\n", "b.png", "c.png", "c.cls=cat", "c.json={}", "d.png",
                                  "d.npy=" + std::string(300'000, 'n'), "d.cls=12",
                                  "d.json={1}"});  // far apart: read one by one
  Reasons reasons;
  const ShardIndex index(path, {.caption = false, .label = true, .read_json = true},
                         std::make_shared<OpenFiles>(), reasons);
  REQUIRE(index.size() == 3);
  RawSample sample;
  index.read(0, sample);
  CHECK(sample.label == 7);
  CHECK(sample.problem.empty());
  index.read(1, sample);
  CHECK(sample.problem == "label is not an integer");
  CHECK(sample.json == "{}");
  index.read(2, sample);
  CHECK(text(sample.image) == "d.png");
  CHECK(sample.label == 12);
  CHECK(sample.json == "{1}");
  CHECK(sample.bytes.size() == 5);
  CHECK(reasons.counts() == Counts{{"sample without a label", 1}});
}

TEST_CASE("shards: captions of invalid UTF-8 and of 10,000 characters") {
  const TemporaryFolder folder;
  const std::string path =
      shard_of(folder / "s.tar", {"a.png", "a.txt=caf\xe9", "b.png", "b.txt=" + std::string(10000, 'w')});
  Reasons reasons;
  const ShardIndex index(path, {}, std::make_shared<OpenFiles>(), reasons);
  RawSample sample;
  index.read(0, sample);
  CHECK(sample.caption == "caf\xef\xbf\xbd");
  CHECK(sample.problem.empty());
  index.read(1, sample);
  CHECK(sample.caption == std::string(10000, 'w'));
  CHECK(reasons.counts() == Counts{{"caption of invalid UTF-8 (repaired)", 1}});
}

TEST_CASE("shards: repaired text, as Python's errors='replace' has it") {
  const auto repaired = [](std::string text) {
    repair_utf8(text);
    return text;
  };
  const std::string r = "\xef\xbf\xbd";
  std::string valid = "a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80";
  CHECK_FALSE(repair_utf8(valid));
  CHECK(repaired("\x80"
                 "a") == r + "a");
  CHECK(repaired("\xc0\xaf") == r + r);                  // overlong
  CHECK(repaired("\xed\xa0\x80") == r + r + r);          // surrogate
  CHECK(repaired("\xf4\x90\x80\x80") == r + r + r + r);  // above U+10FFFF
  CHECK(repaired("\xe2\x82") == r);                      // cut short: one
  CHECK(repaired("\xf0\x9f\x98"
                 "a") == r + "a");
  CHECK(repaired("\xe2\x28\xa1") == r + "(" + r);
}

TEST_CASE("shards: damage is an error, or the end of the shard if asked") {
  const TemporaryFolder folder;
  write_shard(folder / "whole.tar", 0, 10);
  const auto bytes = read_file(folder / "whole.tar");
  const std::string path = folder.write("cut.tar", bytes.substr(0, bytes.size() / 2 + 600));
  Reasons reasons;
  const auto files = std::make_shared<OpenFiles>();
  CHECK(contains(error_of([&] { ShardIndex(path, {}, files, reasons); }), "cut.tar is truncated"));
  CHECK(contains(error_of([&] { ShardIndex(path, {}, files, reasons); }), "--skip-bad-shards"));
  const ShardIndex index(path, {}, files, reasons, true, true);
  CHECK(index.size() >= 4);
  CHECK(index.size() < 10);
  CHECK(reasons.counts().at("damaged shard") == 1);
}

TEST_CASE("shards: no usable sample at all") {
  const TemporaryFolder folder;
  shard_of(folder / "0.tar", {"a.png", "a.cls=1", "b.png", "b.cls=2"});
  shard_of(folder / "1.tar", {});
  std::vector<std::string> warnings;
  const auto source = open_source(
      {.data = folder / "{0,1}.tar", .warn = [&](const std::string& line) { warnings.push_back(line); }});
  CHECK(source->count() == 0);
  CHECK(contains(source->why_empty(), "no usable sample in 2 shards"));
  CHECK(contains(source->why_empty(), "a caption (.txt)"));
  CHECK(contains(source->why_empty(), "the members end in .png .cls; 2 sample without a caption"));
  CHECK(source->reasons().counts().at("shard without a usable sample") == 2);
  CHECK(warnings.size() == 4);
  source->count();  // a second pass counts nothing again
  CHECK(source->reasons().counts().at("sample without a caption") == 2);
}

TEST_CASE("shards: declared counts") {
  const TemporaryFolder folder;
  folder.write("0.tar", "");
  folder.write("1.tar", "");
  const Paths shards = {folder / "0.tar", folder / "1.tar"};
  CHECK_FALSE(declared_sample_count(shards).has_value());
  folder.write("__len__", "17\n");
  CHECK(declared_sample_count(shards) == 17);
  folder.write("sizes.json", R"({"0.tar": 5, "1.tar": 6, "2.tar": 7})");
  CHECK(declared_sample_count(shards) == 11);
  CHECK(declared_sample_count({shards[1]}) == 6);
  folder.write("sizes.json", R"({"0.tar": 5})");
  CHECK_FALSE(declared_sample_count(shards).has_value());
  folder.write("sizes.json", "[1");
  CHECK(contains(error_of([&] { declared_sample_count(shards); }), "sizes.json is not a JSON object"));
}

TEST_CASE("shards: more of them than may be open at once, from several threads") {
  const TemporaryFolder folder;
  for (int i = 0; i < 20; ++i) write_shard(folder / (std::to_string(i) + ".tar"), i * 3, 3);
  OpenFiles files(4);
  std::vector<std::shared_ptr<const InputFile>> held;
  for (int round = 0; round < 2; ++round) {
    for (int i = 0; i < 20; ++i) held.push_back(files.get(folder / (std::to_string(i) + ".tar")));
  }
  uint8_t byte[1];
  for (const auto& file : held) file->read(0, byte);  // a file in use outlives its place in the list
  CHECK(files.get(folder / "19.tar") == held.back());
  CHECK(files.get(folder / "0.tar") != held.front());
}
