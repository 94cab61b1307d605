// temporary_folder.h: a folder that vanishes with the test, and the small data sets that tests put into it.
//
// Include it last: from here on CHECK is doctest's, and the headers of the engine need their own.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "data/png_writer.h"
#include "data/tar.h"
#include "runtime/check.h"

#undef CHECK
#include <doctest/doctest.h>

namespace switchback {

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "switchback-test-XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;

  std::string operator/(const std::string& name) const { return (path_ / name).string(); }
  std::string write(const std::string& name, std::string_view contents) const {
    std::filesystem::create_directories((path_ / name).parent_path());
    std::ofstream(path_ / name, std::ios::binary) << contents;
    return *this / name;
  }

 private:
  std::filesystem::path path_;
};

// A small grey picture whose pixels are all `value`, as a PNG: decoding it gives the value back.
inline std::vector<uint8_t> flat_png(uint8_t value, int64_t height = 8, int64_t width = 8) {
  return encode_png(std::vector<uint8_t>(static_cast<size_t>(height * width), value), height, width, 1);
}

inline std::string key_of(int64_t number) {
  const std::string digits = std::to_string(1'000'000 + number);
  return concat('s', digits.substr(1));
}

// Samples [first, first + count): a flat picture, the caption "caption N", the label N % 10.
inline void write_shard(const std::string& path, int64_t first, int64_t count) {
  TarWriter tar(path);
  for (int64_t n = first; n < first + count; ++n) {
    tar.add(key_of(n) + ".png", flat_png(static_cast<uint8_t>(n % 256)));
    tar.add(key_of(n) + ".txt", "caption " + std::to_string(n));
    tar.add(key_of(n) + ".cls", std::to_string(n % 10));
    tar.add(key_of(n) + ".json", "{\"n\": " + std::to_string(n) + "}");
  }
  tar.finish();
}

// what() of the Error that f throws; "nothing was thrown" otherwise.
template <class F>
std::string error_of(F f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

inline bool contains(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

}  // namespace switchback
