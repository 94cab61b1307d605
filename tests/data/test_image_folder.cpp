// Labelled images as files: what a folder's name means, and what is wrong with lists.
#include "data/image_folder.h"

#include "tests/data/temporary_folder.h"

using namespace switchback;

namespace {

std::vector<std::pair<std::string, int64_t>> samples(SampleSource& source) {
  std::vector<std::pair<std::string, int64_t>> found;
  RawSample raw;
  for (int64_t i = 0; i < source.block(0)->size(); ++i) {
    source.block(0)->read(i, raw);
    found.emplace_back(raw.problem.empty() ? std::string(raw.image.begin(), raw.image.end()) : raw.problem,
                       raw.label);
  }
  return found;
}
using Samples = std::vector<std::pair<std::string, int64_t>>;

}  // namespace

TEST_CASE("image folder: labels are places in the sorted list of folders, or their numbers") {
  const TemporaryFolder folder;
  folder.write("words/zebra/1.JPEG", "z1");
  folder.write("words/ant/deep/2.png", "a2");
  folder.write("words/ant/1.webp", "a1");
  folder.write("words/ant/notes.txt", "not an image");
  folder.write("words/.hidden/1.jpg", "hidden");
  CHECK(samples(*open_image_folder(folder / "words")) == Samples{{"a1", 0}, {"a2", 0}, {"z1", 1}});
  CHECK(image_folder_classes(folder / "words") == std::vector<std::string>{"ant", "zebra"});

  for (int i = 0; i < 11; ++i) folder.write(concat("numbers/", i, "/x.jpg"), std::to_string(i));
  const auto source = open_image_folder(folder / "numbers");
  for (const auto& [contents, label] : samples(*source)) CHECK(contents == std::to_string(label));
  CHECK(source->declared_count() == 11u);
}

TEST_CASE("image folder: errors") {
  const TemporaryFolder folder;
  folder.write("flat/1.jpg", "");
  folder.write("empty/class/readme", "");
  CHECK(contains(error_of([&] { open_image_folder(folder / "flat"); }), "expected one per class"));
  CHECK(contains(error_of([&] { open_image_folder(folder / "empty"); }), "no .jpg"));
  CHECK(contains(error_of([&] { open_image_folder(folder / "gone"); }), "gone"));
}

TEST_CASE("image list: numbers and class names, relative paths, missing files, errors by line") {
  const TemporaryFolder folder;
  folder.write("a b.jpg", "one");
  folder.write("deep/c.jpg", "two");
  const auto list = [&](const std::string& text) {
    folder.write("list.txt", text);
    return samples(*open_image_list(folder / "list.txt", {"cat", "big dog"}));
  };
  CHECK(list("a b.jpg\tbig dog\r\ndeep/c.jpg 0\n\ngone.jpg\t1") ==
        Samples{{"one", 1}, {"two", 0}, {"image cannot be read", 1}});
  CHECK(contains(error_of([&] { list("x.jpg 0\na.jpg\n"); }), "line 2"));
  CHECK(
      contains(error_of([&] { list("x.jpg\tcow\n"); }), "'cow' is neither a number from 0 nor one of the 2"));
  CHECK(contains(error_of([&] { list("x.jpg\t-1\n"); }), "'-1'"));
  CHECK(contains(error_of([&] { list("\n"); }), "lists no image"));
}
