// data_pack as a program: idx files and tables become shards that the loader reads back, byte for byte the
// same every time; bad input ends in one line and status 1.
#include "data/loader.h"
#include "data/sample_source.h"
#include "tests/apps/program.h"
#include "tests/data/temporary_folder.h"

using namespace switchback;
namespace fs = std::filesystem;

namespace {

using Words = std::vector<std::string>;

// Five pictures of 2 x 3, labelled 0 1 2 0 1.
struct Mnist {
  TemporaryFolder folder;
  Mnist() {
    std::string pixels;
    for (char i = 0; i < 30; ++i) pixels += i;
    folder.write("images", std::string("\0\0\x08\x03\0\0\0\x05\0\0\0\x02\0\0\0\x03", 16) + pixels);
    folder.write("labels", std::string("\0\0\x08\x01\0\0\0\x05\0\1\2\0\1", 13));
    folder.write("names", "cat\r\ndog\nowl\n\n");
    folder.write("templates", "a {c}\na {c} beside a {c}\n");
  }
  Outcome pack(const std::string& output, const Words& more = {},
               const std::string& labels = "labels") const {
    Words words{"--images",       folder / "images", "--labels",           folder / labels, "--class-names",
                folder / "names", "--templates",     folder / "templates", "--output",      folder / output};
    words.insert(words.end(), more.begin(), more.end());
    return Program("data_pack", words, folder / "output").wait();
  }
};

}  // namespace

TEST_CASE("data_pack: idx files become shards with captions and labels") {
  const Mnist mnist;
  const Outcome packed = mnist.pack("a", {"--samples-per-shard", "2"});
  CHECK(packed.status == 0);
  CHECK(contains(packed.output, "packed 5 samples into 3 shards"));
  const auto source =
      open_source({.data = mnist.folder / "a/{000000..000002}.tar", .needs = {.label = true}});
  CHECK(source->declared_count() == 5);
  LoaderOptions options;
  options.mode = LoaderOptions::Mode::evaluate;
  options.batch_size = 5;
  options.image_size = 3;
  options.resize_mode =
      ResizeMode::longest;  // 2 x 3 in the middle or at the top of 3 x 3: the pixels are kept
  Loader loader(source, nullptr, options);
  Batch batch;
  REQUIRE(loader.next(batch));
  CHECK(batch.size == 5);
  CHECK(batch.labels == std::vector<int64_t>{0, 1, 2, 0, 1});
  const std::string names[] = {"cat", "dog", "owl"};
  for (size_t i = 0; i < 5; ++i) {
    const std::string& name = names[batch.labels[i]];
    CHECK((batch.captions[i] == "a " + name || batch.captions[i] == "a " + name + " beside a " + name));
    const auto image = batch.images.span<uint8_t>().subspan(i * 27, 27);
    CHECK(std::count(image.begin(), image.end(), 6 * i + 5) == 3);  // its last pixel, in three channels
  }
  CHECK(read_file(mnist.folder / "a/classnames.txt") == "cat\ndog\nowl\n");
  CHECK(fs::exists(mnist.folder / "a/zeroshot_classification_templates.txt"));

  CHECK(mnist.pack("b", {"--samples-per-shard", "2"}).status == 0);
  for (const char* name : {"000000.tar", "000002.tar", "sizes.json"}) {
    CHECK(read_file(mnist.folder / (std::string("a/") + name)) ==
          read_file(mnist.folder / (std::string("b/") + name)));
  }
  CHECK(contains(mnist.pack("b").output, "already holds shards (000000.tar)"));
  CHECK(mnist.pack("b", {"--overwrite"}).status == 0);
  CHECK_FALSE(fs::exists(mnist.folder / "b/000001.tar"));
}

TEST_CASE("data_pack: bad idx input") {
  const Mnist mnist;
  const auto error = [&](const std::string& labels) {
    const Outcome outcome = mnist.pack("out", {}, labels);
    CHECK(outcome.status == 1);
    CHECK(std::count(outcome.output.begin(), outcome.output.end(), '\n') == 1);
    CHECK_FALSE(fs::exists(mnist.folder / "out"));
    return outcome.output;
  };
  CHECK(contains(error("nowhere"), "nowhere: No such file"));
  CHECK(contains(error("images"), "is not an idx file of labels"));
  mnist.folder.write("few", std::string("\0\0\x08\x01\0\0\0\x02\0\1", 10));
  CHECK(contains(error("few"), "5 images in"));
  mnist.folder.write("wild", std::string("\0\0\x08\x01\0\0\0\x05\0\1\2\7\1", 13));
  CHECK(contains(error("wild"), "label 7 of image 3"));
  mnist.folder.write("templates", "a {c}\na cat\n");
  CHECK(contains(error("labels"), "the template 'a cat' has no {c}"));
  const Outcome unknown = mnist.pack("out", {"--samples-per-shart", "3"});
  CHECK(unknown.status == 1);
  CHECK(contains(unknown.output, "did you mean --samples-per-shard?"));
}

TEST_CASE("data_pack: a folder and a table") {
  const TemporaryFolder folder;
  const auto png = flat_png(7);
  folder.write("pictures/a.dat", std::string(png.begin(), png.end()));  // the contents say what it is
  folder.write("pictures/b.jpg", "not a picture");
  folder.write("t.csv",
               "filepath,title,class\na.dat,\"a, b\",3\nnone.png,x,1\nb.jpg,y,1\na.dat, ,1\nshort\n");
  const auto pack = [&](const Words& more) {
    Words words{"--csv", folder / "t.csv", "--folder", folder / "pictures", "--csv-separator", ","};
    words.insert(words.end(), more.begin(), more.end());
    return Program("data_pack", words, folder / "output").wait();
  };
  const Outcome packed = pack({"--output", folder / "a", "--csv-label-key", "class"});
  CHECK(packed.status == 0);
  for (const char* line :
       {"packed 1 samples into 1 shard", "1 caption is empty", "1 image file cannot be read",
        "1 not a JPEG, PNG or WebP", "1 row with too few columns"}) {
    CHECK(contains(packed.output, line));
  }
  const auto block = open_source({.data = folder / "a/000000.tar"})->block(0);
  RawSample sample;
  block->read(0, sample);
  CHECK(std::vector<uint8_t>(sample.image.begin(), sample.image.end()) == png);
  CHECK(sample.caption == "a, b");
  CHECK(sample.label == 3);
  CHECK(contains(pack({"--output", folder / "b", "--csv-img-key", "image"}).output, "no column 'image'"));
  CHECK(contains(pack({"--output", folder / "c", "--csv-label-key", "title"}).output, "is not an integer"));
  CHECK(contains(pack({"--output", folder / "d", "--images", "x"}).output, "give either --csv"));
}
