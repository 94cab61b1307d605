#include <zlib.h>

#include "data/idx.h"
#include "runtime/file.h"
#include "tests/data/temporary_folder.h"

using namespace switchback;

namespace {

const std::string labels_file("\0\0\x08\x01\0\0\0\x03\x01\x02\x03", 11);
const std::string images_file =
    std::string("\0\0\x08\x03\0\0\0\x02\0\0\0\x02\0\0\0\x03", 16) + "abcdefABCDEF";

std::string gzip(const std::string& path, const std::string& bytes) {
  gzFile file = gzopen(path.c_str(), "wb");
  gzwrite(file, bytes.data(), static_cast<unsigned>(bytes.size()));
  gzclose(file);
  return path;
}

}  // namespace

TEST_CASE("idx: plain and gzip") {
  const TemporaryFolder folder;
  for (bool packed : {false, true}) {
    const auto write = [&](const std::string& name, const std::string& bytes) {
      return packed ? gzip(folder / (name + ".gz"), bytes) : folder.write(name, bytes);
    };
    CHECK(read_idx_labels(write("l", labels_file)) == std::vector<uint8_t>{1, 2, 3});
    const IdxImages images = read_idx_images(write("i", images_file));
    CHECK(images.count == 2);
    CHECK(images.height == 2);
    CHECK(images.width == 3);
    CHECK(std::string(images.image(1).begin(), images.image(1).end()) == "ABCDEF");
  }
}

TEST_CASE("idx: what is wrong is said") {
  const TemporaryFolder folder;
  const auto labels = [&](const std::string& bytes) {
    return error_of([&] { read_idx_labels(folder.write("x", bytes)); });
  };
  const auto images = [&](const std::string& bytes) {
    return error_of([&] { read_idx_images(folder.write("x", bytes)); });
  };
  CHECK(contains(images(labels_file),
                 "x is not an idx file of images: it starts with 0x00000801, expected 0x00000803"));
  CHECK(contains(labels(images_file), "expected 0x00000801"));
  CHECK(contains(labels(""), "is not an idx file of labels"));
  CHECK(contains(labels(labels_file.substr(0, 10)),
                 "x is truncated: its header promises 3 labels, there are 2 bytes"));
  CHECK(contains(labels(labels_file + "4"), "is too long"));
  CHECK(contains(images(images_file.substr(0, 9)), "x is truncated: 9 bytes"));
  CHECK(contains(images(images_file.substr(0, 20)), "promises 2 images of 2 x 3, there are 4 bytes"));
  std::string huge = images_file;
  huge.replace(4, 12, std::string(12, '\xff'));
  CHECK(contains(images(huge), "x is truncated: its header promises 4294967295 images"));
  CHECK(contains(error_of([&] { read_idx_labels(folder / "none"); }), "No such file"));
  std::string noise(5000, ' ');
  uint32_t state = 1;
  for (char& c : noise) c = static_cast<char>((state = state * 1664525u + 1013904223u) >> 24);
  const std::string packed =
      read_file(gzip(folder / "whole.gz", std::string("\0\0\x08\x01\0\0\x13\x88", 8) + noise));
  CHECK(contains(labels(packed.substr(0, packed.size() / 2)), "cannot unpack"));
}
