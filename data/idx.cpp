#include "data/idx.h"

#include <zlib.h>

#include <memory>

#include "data/input_file.h"
#include "runtime/check.h"

namespace switchback {
namespace {

// All bytes; zlib passes plain files through. Memory grows with what is there, not with what a header claims.
std::vector<uint8_t> read_plain_or_gzip(const std::string& path) {
  const InputFile exists(path);  // for its error message
  const std::unique_ptr<gzFile_s, int (*)(gzFile)> file(gzopen(path.c_str(), "rb"), gzclose);
  if (!file) fail("cannot open ", path);
  std::vector<uint8_t> bytes;
  while (true) {
    constexpr size_t step = 1 << 20;
    const size_t done = bytes.size();
    bytes.resize(done + step);
    const int n = gzread(file.get(), bytes.data() + done, step);
    bytes.resize(done + static_cast<size_t>(n > 0 ? n : 0));
    int status = Z_OK;
    const char* reason = gzerror(file.get(), &status);
    if (n < 0 || status == Z_BUF_ERROR)
      fail("cannot unpack ", path, ": ", n < 0 ? reason : "the gzip stream is truncated");
    if (n == 0) return bytes;
  }
}

uint32_t number(const std::vector<uint8_t>& bytes, size_t i) {
  return uint32_t{bytes[i]} << 24 | uint32_t{bytes[i + 1]} << 16 | uint32_t{bytes[i + 2]} << 8 | bytes[i + 3];
}

// The sizes in the header; afterwards `bytes` holds the data alone.
std::vector<int64_t> take_header(std::vector<uint8_t>& bytes, const std::string& path, uint32_t magic,
                                 const char* what) {
  const size_t header = 4 + 4 * (magic & 255);
  if (bytes.size() < 4 || number(bytes, 0) != magic) {
    const char* digits = "0123456789abcdef";
    std::string found;
    for (size_t i = 0; i < 4 && i < bytes.size(); ++i)
      found += {digits[bytes[i] >> 4], digits[bytes[i] & 15]};
    fail(path, " is not an idx file of ", what, ": it starts with 0x", found, ", expected 0x0000080",
         magic & 255);
  }
  if (bytes.size() < header) fail(path, " is truncated: ", bytes.size(), " bytes");
  std::vector<int64_t> sizes;
  unsigned __int128 expected = 1;  // three 32-bit sizes need 96 bits
  for (size_t i = 4; i < header; i += 4) {
    sizes.push_back(number(bytes, i));
    expected *= number(bytes, i);
  }
  bytes.erase(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(header));
  if (expected != bytes.size()) {
    fail(path, expected > bytes.size() ? " is truncated" : " is too long", ": its header promises ", sizes[0],
         " ", what, sizes.size() == 3 ? concat(" of ", sizes[1], " x ", sizes[2]) : "", ", there are ",
         bytes.size(), " bytes of them");
  }
  return sizes;
}

}  // namespace

IdxImages read_idx_images(const std::string& path) {
  IdxImages images;
  images.pixels = read_plain_or_gzip(path);
  const auto sizes = take_header(images.pixels, path, 0x803, "images");
  images.count = sizes[0];
  images.height = sizes[1];
  images.width = sizes[2];
  if (images.pixels.empty()) fail(path, " holds no images");
  return images;
}

std::vector<uint8_t> read_idx_labels(const std::string& path) {
  std::vector<uint8_t> labels = read_plain_or_gzip(path);
  take_header(labels, path, 0x801, "labels");
  return labels;
}

}  // namespace switchback
