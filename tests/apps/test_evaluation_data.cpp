// clip_eval on every form of labelled data: the same images must give the same figures, whatever they lie in.
#include "tests/apps/workshop.h"

using namespace switchback;

namespace {

// 12 noisy images of 3 classes, as shards (CLIP_benchmark's folder), as one folder per class, as a list.
struct Labelled : Workshop {
  Labelled() {
    REQUIRE_EQ(train("e", {"--max-steps", "2"}).status, 0);
    fs::create_directories(file("benchmark/test"));
    TarWriter shards[2] = {TarWriter(file("benchmark/test/0.tar")), TarWriter(file("benchmark/test/1.tar"))};
    std::string list;
    for (int i = 0; i < 12; ++i) {
      const int label = i / 4;
      const auto png = noise_png(static_cast<uint64_t>(i), 20 + i, 20);
      const std::string_view bytes(reinterpret_cast<const char*>(png.data()), png.size());
      const std::string key = concat("s", 1000000 + i);
      shards[i / 6].add(key + ".png", bytes);
      shards[i / 6].add(key + ".cls", std::to_string(label));
      const std::string folder = "folders/" + std::string(label == 0 ? "ant" : label == 1 ? "bee" : "cow");
      fs::create_directories(file(folder));
      write_file(file(folder + "/" + key + ".PNG"), bytes);
      list +=
          "../" + folder + "/" + key + ".PNG\t" + (i % 2 ? std::to_string(label) : folder.substr(8)) + "\n";
    }
    for (TarWriter& shard : shards) shard.finish();
    write_file(file("benchmark/test/nshards.txt"), "2\n");
    write_file(file("benchmark/classnames.txt"), "ant\nbee\ncow\n");
    write_file(file("benchmark/zeroshot_classification_templates.txt"), "a {c}\nsome {c}s\n");
    fs::create_directories(file("lists"));
    write_file(file("lists/list.txt"), list);
  }
  Outcome evaluate(Words words) {
    words.insert(words.begin(), {"--checkpoint", checkpoint("e", 2), "--output", file("results.json")});
    return Program("clip_eval", words, file("evaluation")).wait();
  }
  Words names() const {
    return {"--classes", file("benchmark/classnames.txt"), "--templates",
            file("benchmark/zeroshot_classification_templates.txt")};
  }
};

}  // namespace

TEST_CASE("zero-shot: CLIP_benchmark's folder, a folder per class and a list of the same images agree") {
  Labelled w;
  Outcome done = w.evaluate({"--zeroshot-data", w.file("benchmark")});
  INFO(done.output);
  REQUIRE_EQ(done.status, 0);
  CHECK(done.output.find("zero-shot, 12 images") != std::string::npos);
  const std::string expected = read_file(w.file("results.json"));
  for (const char* data : {"benchmark/test/{0,1}.tar", "folders", "lists/list.txt"}) {
    Words words = w.names();
    words.insert(words.end(), {"--zeroshot-data", w.file(data)});
    done = w.evaluate(words);
    INFO(done.output);
    REQUIRE_EQ(done.status, 0);
    CHECK_EQ(read_file(w.file("results.json")), expected);
  }
}

TEST_CASE("zero-shot: errors say what does not fit together") {
  Labelled w;
  const Outcome names = w.evaluate({"--zeroshot-data", w.file("folders")});
  CHECK_EQ(names.status, 1);
  CHECK(names.output.find("classnames.txt") != std::string::npos);
  fs::create_directories(w.file("folders/dog"));
  Words words = w.names();
  words.insert(words.end(), {"--zeroshot-data", w.file("folders")});
  const Outcome count = w.evaluate(words);
  CHECK_EQ(count.status, 1);
  CHECK(count.output.find("has 4 folders, but") != std::string::npos);
}

TEST_CASE("retrieval on CLIP_benchmark's folder: every line of .txt is a caption") {
  Labelled w;
  fs::create_directories(w.file("flickr/test"));
  write_file(w.file("flickr/test/nshards.txt"), "1");
  TarWriter tar(w.file("flickr/test/0.tar"));
  for (int i = 0; i < 6; ++i) {
    const auto png = noise_png(static_cast<uint64_t>(i), 20, 20);
    tar.add(concat("k", i, ".png"), png);
    tar.add(concat("k", i, ".txt"),
            i == 2 ? "alone" : "one " + std::to_string(i) + "\ntwo\n\nthree\n");
  }
  tar.finish();
  const Outcome done = w.evaluate({"--retrieval-data", w.file("flickr"), "--batch-size", "4"});
  INFO(done.output);
  CHECK_EQ(done.status, 0);
  CHECK(done.output.find("retrieval, 6 images with 16 captions") != std::string::npos);
}

TEST_CASE("contact sheet: one SVG with the pictures inside, for pairs, classes and one's own queries") {
  Labelled w;
  const std::string sheet = w.file("sheet.svg");
  const auto count = [&](const std::string& part) {
    const std::string svg = read_file(sheet);
    size_t found = 0;
    for (size_t at = 0; (at = svg.find(part, at)) != std::string::npos; ++at) ++found;
    return found;
  };
  Outcome done =
      w.evaluate({"--zeroshot-data", w.file("benchmark"), "--contact-sheet", sheet, "--matches", "5"});
  INFO(done.output);
  REQUIRE_EQ(done.status, 0);
  CHECK_EQ(count("<image "), 15);
  CHECK(read_file(sheet).ends_with("</svg>\n"));
  done = w.evaluate({"--retrieval-data", w.file("a.tar"), "--contact-sheet", sheet, "--matches", "20"});
  REQUIRE_EQ(done.status, 0);
  CHECK_EQ(count("<image "), 20 * 20);
  CHECK_EQ(count("stroke=\"#1a9641\""), 20);  // everybody's own image is among all of them
  write_file(w.file("queries.txt"), "a <dog> & \xff a cat\nsecond\n");
  done = w.evaluate(
      {"--retrieval-data", w.file("a.tar"), "--contact-sheet", sheet, "--queries", w.file("queries.txt")});
  REQUIRE_EQ(done.status, 0);
  CHECK_EQ(count("<image "), 16);
  CHECK_EQ(count("a &lt;dog&gt; &amp; \xEF\xBF\xBD a cat"), 1);
}

TEST_CASE("clip_train evaluates a folder per class during training") {
  Labelled w;
  Words words{"--zeroshot-data",      w.file("folders"),
              "--zeroshot-frequency", "1",
              "--max-steps",          "1",
              "--zeroshot-classes",   w.file("benchmark/classnames.txt"),
              "--zeroshot-templates", w.file("benchmark/zeroshot_classification_templates.txt")};
  const Outcome done = w.train("inside", words);
  INFO(done.output);
  CHECK_EQ(done.status, 0);
  CHECK(done.output.find("zeroshot-val-top1: ") != std::string::npos);
}
