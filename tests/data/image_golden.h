// image_golden.h: reads tests/golden/images.bin, which scripts/make_image_golden.py writes (the format is
// told there).
#pragma once

#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "data/augment.h"
#include "data/image.h"

struct GoldenResult {
  enum Kind : uint8_t { resize, crop_and_resize, evaluation } kind;
  switchback::Interpolation interpolation;
  switchback::ResizeMode mode;
  switchback::CropBox box;
  int64_t height, width;
  uint64_t hash;
};

struct GoldenPicture {
  std::string name;
  std::vector<uint8_t> file;
  int64_t height, width;
  uint64_t hash;
  std::vector<GoldenResult> results;
};

inline uint64_t hash_of(std::span<const uint8_t> bytes) {  // FNV-1a
  uint64_t value = 0xcbf29ce484222325u;
  for (const uint8_t byte : bytes) value = (value ^ byte) * 0x100000001b3u;
  return value;
}

class GoldenReader {
 public:
  // Tests run in the root of the source tree.
  explicit GoldenReader(const char* path) {
    std::ifstream in(path, std::ios::binary);
    bytes_.assign(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
    if (take_text(8) != "SWBIMG01") throw std::runtime_error(std::string("cannot read ") + path);
  }

  template <class T>
  T take() {
    T value;
    std::memcpy(&value, need(sizeof(T)), sizeof(T));
    return value;
  }

  std::string take_text(size_t size) { return std::string(need(size), size); }

 private:
  const char* need(size_t size) {
    if (size > bytes_.size() - at_) throw std::runtime_error("the golden file is truncated");
    at_ += size;
    return bytes_.data() + at_ - size;
  }

  std::vector<char> bytes_;
  size_t at_ = 0;
};

inline const std::vector<GoldenPicture>& golden_pictures() {
  static const std::vector<GoldenPicture> pictures = [] {
    GoldenReader in("tests/golden/images.bin");
    std::vector<GoldenPicture> all(in.take<uint32_t>());
    for (GoldenPicture& picture : all) {
      picture.name = in.take_text(in.take<uint8_t>());
      const std::string file = in.take_text(in.take<uint32_t>());
      picture.file.assign(file.begin(), file.end());
      picture.height = in.take<uint32_t>();
      picture.width = in.take<uint32_t>();
      picture.hash = in.take<uint64_t>();
      picture.results.resize(in.take<uint8_t>());
      for (GoldenResult& result : picture.results) {
        result.kind = static_cast<GoldenResult::Kind>(in.take<uint8_t>());
        result.interpolation = static_cast<switchback::Interpolation>(in.take<uint8_t>());
        result.mode = static_cast<switchback::ResizeMode>(in.take<uint8_t>());
        for (int64_t* value : {&result.box.top, &result.box.left, &result.box.height, &result.box.width,
                               &result.height, &result.width})
          *value = in.take<int32_t>();
        result.hash = in.take<uint64_t>();
      }
    }
    return all;
  }();
  return pictures;
}
