// The fast JPEG decoder against libjpeg, and its vector loops against the plain ones.
#include <cstring>
#include <random>

#include "data/decoders.h"
#include "data/jpeg_baseline.h"
#include "data/jpeg_colour.h"
#include "data/jpeg_huffman.h"
#include "data/jpeg_idct.h"
#include "runtime/check.h"
#include "tests/data/image_golden.h"

#undef CHECK  // from here on it is doctest's
#include <doctest/doctest.h>

using namespace switchback;

namespace {

std::vector<const GoldenPicture*> golden_jpegs() {
  std::vector<const GoldenPicture*> found;
  for (const GoldenPicture& picture : golden_pictures())
    if (picture.name.rfind("jpeg", 0) == 0) found.push_back(&picture);
  return found;
}

bool contains(const std::string& name, const char* part) { return name.find(part) != std::string::npos; }

// What the fast decoder says it can do, libjpeg must do, to the same bytes. False if the fast one declined.
bool decoded_alike(std::span<const uint8_t> file, const DecodeOptions& options) {
  Image fast, slow;
  try {
    if (!decode_baseline_jpeg(fast, file, options)) return false;
  } catch (const Error&) {  // too large: then for both
    CHECK_THROWS_AS(decode_jpeg_by_library(slow, file, options), Error);
    return false;
  }
  REQUIRE_NOTHROW(decode_jpeg_by_library(slow, file, options));
  REQUIRE_EQ(fast.height, slow.height);
  REQUIRE_EQ(fast.width, slow.width);
  REQUIRE((fast.pixels == slow.pixels));
  return true;
}

}  // namespace

TEST_CASE("the fast JPEG decoder takes the ordinary golden pictures and gives libjpeg's bytes") {
  int taken = 0;
  for (const GoldenPicture* picture : golden_jpegs()) {
    CAPTURE(picture->name);
    const bool alike = decoded_alike(picture->file, {});
    taken += alike;
    if (contains(picture->name, "progressive") || contains(picture->name, "cmyk") ||
        contains(picture->name, "ycck") || contains(picture->name, "transform-0"))
      CHECK(!alike);
    if (contains(picture->name, "restart") || contains(picture->name, "grey-21x13") ||
        contains(picture->name, "200x150"))
      CHECK(alike == !contains(picture->name, "progressive"));
  }
  CHECK(taken >= 40);
}

TEST_CASE("damaged JPEGs: what the fast decoder takes is what libjpeg gives") {
  std::mt19937 random(3);
  std::vector<const GoldenPicture*> small;
  for (const GoldenPicture* picture : golden_jpegs())
    if (picture->file.size() < 4000 && decoded_alike(picture->file, {})) small.push_back(picture);
  REQUIRE(small.size() > 20);
  int taken = 0;
  for (int i = 0; i < 20000; ++i) {
    const GoldenPicture& picture = *small[random() % small.size()];
    std::vector<uint8_t> file = picture.file;
    const int changes = 1 + static_cast<int>(random() % 3);
    for (int change = 0; change < changes; ++change) {
      // Mostly in the headers and at the start of the scan, where damage goes a long way.
      const size_t at = random() % (random() % 2 == 0 ? file.size() : std::min<size_t>(file.size(), 650));
      switch (random() % 5) {
        case 0:
          file[at] = static_cast<uint8_t>(random());
          break;
        case 1:
        case 2:
          file[at] ^= static_cast<uint8_t>(1u << random() % 8);
          break;
        case 3:
          file.erase(file.begin() + static_cast<std::ptrdiff_t>(at));
          break;
        default:
          file.insert(file.begin() + static_cast<std::ptrdiff_t>(at), static_cast<uint8_t>(random()));
      }
    }
    CAPTURE(picture.name);
    CAPTURE(i);
    taken += decoded_alike(file, {.max_image_pixels = 1'000'000});
  }
  CHECK(taken > 2000);
}

TEST_CASE("the vector inverse transform equals the plain one, and refuses what it refuses") {
  std::mt19937 random(1);
  int refused = 0;
  for (int i = 0; i < 20000; ++i) {
    int16_t block[64] = {};
    uint16_t quantisers[64];
    const int largest = 1 << random() % 12, entries = 1 + static_cast<int>(random() % 64);
    for (uint16_t& quantiser : quantisers)
      quantiser = static_cast<uint16_t>(1 + random() % (i % 2 == 0 ? 1 : 255));
    for (int j = 0; j < entries; ++j)
      block[random() % 64] =
          static_cast<int16_t>(static_cast<int>(random() % (2u * static_cast<unsigned>(largest))) - largest);
    uint8_t fast[8 * 11] = {}, plain[8 * 11] = {};
    const bool good = idct_plain(plain, 11, block, quantisers);
    REQUIRE_EQ(idct(fast, 11, block, quantisers), good);
    if (good) REQUIRE(std::memcmp(fast, plain, sizeof(fast)) == 0);
    refused += !good;
    std::memset(block + 1, 0, sizeof(block) - sizeof(block[0]));
    if (idct_plain(plain, 11, block, quantisers)) {
      REQUIRE(idct_dc_only(fast, 11, block[0], quantisers[0]));
      REQUIRE(std::memcmp(fast, plain, sizeof(fast)) == 0);
    } else {
      REQUIRE(!idct_dc_only(fast, 11, block[0], quantisers[0]));
    }
  }
  CHECK(refused > 500);
  CHECK(refused < 15000);
}

TEST_CASE("the vector colour conversion equals the plain one for every colour") {
  std::vector<uint8_t> y(65536 + 7), cb(y.size()), cr(y.size()), fast(3 * y.size()), plain(3 * y.size());
  for (int light = 0; light < 256; light += 5) {
    for (size_t i = 0; i < y.size(); ++i) {
      y[i] = static_cast<uint8_t>(light);
      cb[i] = static_cast<uint8_t>(i);
      cr[i] = static_cast<uint8_t>(i >> 8);
    }
    ycc_to_rgb(fast.data(), y.data(), cb.data(), cr.data(), static_cast<int64_t>(y.size()));
    ycc_to_rgb_plain(plain.data(), y.data(), cb.data(), cr.data(), static_cast<int64_t>(y.size()));
    REQUIRE((fast == plain));
  }
}

TEST_CASE("a Huffman table refuses what is no prefix code, or a size that 8-bit pictures do not have") {
  const auto table = [](std::initializer_list<std::pair<int, int>> counts,
                        std::initializer_list<uint8_t> symbols) {
    std::vector<uint8_t> segment(16);
    for (const auto& [length, count] : counts)
      segment[static_cast<size_t>(length - 1)] = static_cast<uint8_t>(count);
    segment.insert(segment.end(), symbols);
    return segment;
  };
  HuffmanTable huffman;
  CHECK(huffman.build(table({{2, 3}}, {0x00, 0x01, 0x11}), false));
  CHECK(!huffman.build(table({{1, 3}}, {0x00, 0x01, 0x11}), false));  // three codes of one bit
  CHECK(!huffman.build(table({{2, 1}}, {0x0B}), false));              // 11 bits of an AC value
  CHECK(huffman.build(table({{2, 1}}, {0x0B}), true));                // of a DC difference
  CHECK(!huffman.build(table({{2, 1}}, {0x0C}), true));
  // 01 is symbol 0x11: one zero, then one bit: 1.
  REQUIRE(huffman.build(table({{2, 3}}, {0x00, 0x11, 0x02}), false));
  const uint32_t found = huffman.look_up(0b0110'0000ull << 56);
  CHECK_EQ(found & 0x7f, 3);
  CHECK_EQ(found >> 8 & 0xff, 1);
  CHECK_EQ(static_cast<int32_t>(found) >> 16, 1);
}
