// idx.h: the file format of MNIST and its successors, plain or gzip.
//
//   images  0x00000803, count, height, width as big-endian 32-bit numbers, then count x height x width bytes
//   labels  0x00000801, count, then count bytes
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace switchback {

struct IdxImages {
  int64_t count = 0, height = 0, width = 0;
  std::vector<uint8_t> pixels;  // (count, height, width)

  std::span<const uint8_t> image(int64_t i) const {
    return std::span(pixels).subspan(static_cast<size_t>(i * height * width),
                                     static_cast<size_t>(height * width));
  }
};

// Errors name the file: another kind of file, fewer or more bytes than its header says.
IdxImages read_idx_images(const std::string& path);
std::vector<uint8_t> read_idx_labels(const std::string& path);

}  // namespace switchback
