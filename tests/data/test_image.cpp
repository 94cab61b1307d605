// Decoding: the pixels of Pillow on the golden pictures, and one clear line on everything that is not a
// picture.
#include <random>
#include <string>

#include "data/image.h"
#include "data/resize.h"
#include "runtime/check.h"
#include "tests/data/image_golden.h"

#undef CHECK  // from here on it is doctest's
#include <doctest/doctest.h>

using namespace switchback;

namespace {

const GoldenPicture& golden(const std::string& name) {
  for (const GoldenPicture& picture : golden_pictures())
    if (picture.name == name) return picture;
  FAIL("no golden picture ", name);
  return golden_pictures().front();
}

// "" when the bytes are decoded.
std::string error_of(std::span<const uint8_t> bytes, const DecodeOptions& options = {}) {
  try {
    const Image image = decode_image(bytes, options);
    CHECK_EQ(image.pixels.size(), static_cast<size_t>(image.height * image.width * 3));
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}

bool is_webp(const GoldenPicture& picture) { return picture.name.rfind("webp", 0) == 0; }

#ifdef SWITCHBACK_WEBP
constexpr bool kWebp = true;
#else
constexpr bool kWebp = false;
#endif

}  // namespace

TEST_CASE("decoding equals Pillow's on every golden picture") {
  CHECK(golden_pictures().size() >= 200);
  Image reused;
  for (const GoldenPicture& picture : golden_pictures()) {
    if (!kWebp && is_webp(picture)) continue;
    CAPTURE(picture.name);
    decode_image(reused, picture.file);
    CHECK_EQ(reused.height, picture.height);
    CHECK_EQ(reused.width, picture.width);
    CHECK_EQ(hash_of(reused.pixels), picture.hash);
  }
}

TEST_CASE(
    "fast decoding: the picture at 1/2, 1/4 or 1/8, never smaller than asked for; other formats as they "
    "are") {
  int reduced = 0;
  for (const GoldenPicture& picture : golden_pictures()) {
    if (!kWebp && is_webp(picture)) continue;
    CAPTURE(picture.name);
    const Image whole = decode_image(picture.file);
    const int64_t shorter = std::min(whole.height, whole.width);
    for (int64_t edge : {int64_t{1}, int64_t{5}, shorter / 2, shorter, shorter + 1}) {
      if (edge == 0) continue;
      CAPTURE(edge);
      const Image fast = decode_image(picture.file, {.fast_decode_edge = edge});
      int64_t part = 1;
      if (picture.name.starts_with("jpeg"))
        while (part < 8 && shorter / (2 * part) >= edge) part *= 2;
      CHECK_EQ(fast.height, (whole.height + part - 1) / part);
      CHECK_EQ(fast.width, (whole.width + part - 1) / part);
      if (part == 1) CHECK(fast.pixels == whole.pixels);
      if (part == 1 || whole.height % part || whole.width % part) continue;
      // A pixel is about the mean of the part x part pixels in its place (some of these pictures are noise).
      double difference = 0;
      for (int64_t y = 0; y < fast.height; ++y)
        for (int64_t i = 0; i < fast.width * 3; ++i) {
          double sum = 0;
          for (int64_t dy = 0; dy < part; ++dy)
            for (int64_t dx = 0; dx < part; ++dx)
              sum += whole.row(y * part + dy)[(i / 3 * part + dx) * 3 + i % 3];
          difference += std::abs(sum / static_cast<double>(part * part) - fast.row(y)[i]);
        }
      CHECK_LE(difference / static_cast<double>(fast.pixels.size()), 16);
      ++reduced;
    }
  }
  CHECK_GE(reduced, 5);
}

TEST_CASE("every prefix of a JPEG is an error: the end marker counts") {
  for (const char* name :
       {"jpeg-gradient-17x9-s1-q5-progressive", "jpeg-restart-3", "jpeg-cmyk-21x13", "jpeg-grey-21x13"}) {
    const std::vector<uint8_t>& file = golden(name).file;
    CAPTURE(name);
    for (size_t size = 0; size < file.size(); ++size) {
      const std::string error = error_of(std::span(file).first(size));
      CAPTURE(size);
      CAPTURE(error);
      CHECK(!error.empty());
      CHECK(error.find('\n') == std::string::npos);
      if (size >= 4) CHECK(error == "truncated JPEG (premature end of data)");
    }
    CHECK(error_of(file).empty());
  }
}

TEST_CASE("every prefix of a PNG that lacks image data is an error; the end chunk does not count") {
  for (const char* name : {"png-rgb-37x19", "png-palette16-37x19", "png-interlaced-colour6-37x19"}) {
    const std::vector<uint8_t>& file = golden(name).file;
    CAPTURE(name);
    for (size_t size = 0; size < file.size(); ++size) {
      const std::string error = error_of(std::span(file).first(size));
      CAPTURE(size);
      CAPTURE(error);
      // 12 bytes of IEND, before them the 4 of the data's checksum.
      if (size < file.size() - 16) CHECK(!error.empty());
      if (size >= file.size() - 12) CHECK(error.empty());
      if (size >= 8 && !error.empty()) CHECK(error == "truncated PNG (premature end of data)");
    }
  }
}

TEST_CASE("every prefix of a WebP is an error" * doctest::skip(!kWebp)) {
  for (const char* name : {"webp-22x15", "webp-lossless-22x15", "webp-alpha-22x15", "webp-animation-lossy"}) {
    const std::vector<uint8_t>& file = golden(name).file;
    CAPTURE(name);
    CHECK(error_of(file).empty());
    if (std::string(name) == "webp-animation-lossy") continue;  // the first frame may be there
    for (size_t size = 0; size + 1 < file.size(); ++size) {
      CAPTURE(size);
      CHECK(!error_of(std::span(file).first(size)).empty());
    }
  }
}

TEST_CASE("what is not a picture is told in one line") {
  const auto text = [](const std::string& bytes) {
    return error_of(std::span(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()));
  };
  CHECK(text("") == "empty image (0 bytes)");
  CHECK(text("<html>") == "not an image in JPEG, PNG or WebP format (first bytes 3c 68 74 6d)");
  CHECK(text("x") == "not an image in JPEG, PNG or WebP format (first bytes 78)");
  CHECK(text("GIF89a......").find("GIF image") == 0);
  CHECK(text("\xFF\xD8\xFF") == "truncated JPEG (premature end of data)");
  CHECK(text("\x89PNG\r\n\x1A\n") == "truncated PNG (premature end of data)");
  CHECK(text(std::string("\xFF\xD8\xFF\xD9", 4)).find("damaged JPEG (") == 0);
  CHECK(text(std::string("RIFF\x10\0\0\0WEBPVP8 ", 16)).find("WebP") != std::string::npos);
}

TEST_CASE("the size in the header is checked before anything is decoded") {
  const auto with = [](const char* name, size_t at, std::initializer_list<uint8_t> bytes) {
    std::vector<uint8_t> file = golden(name).file;
    std::copy(bytes.begin(), bytes.end(), file.begin() + static_cast<std::ptrdiff_t>(at));
    return file;
  };
  const std::vector<uint8_t>& file = golden("jpeg-200x150").file;
  CHECK(error_of(file, {.max_image_pixels = 30000}).empty());
  CHECK(error_of(file, {.max_image_pixels = 29999}) ==
        "image too large (200 x 150 = 30000 pixels, the limit is 29999)");
  CHECK(error_of(golden("png-rgb-37x19").file, {.max_image_pixels = 702}) ==
        "image too large (37 x 19 = 703 pixels, the limit is 702)");
  // A JPEG that claims 65000 x 65000.
  size_t frame = 0;
  while (!(file[frame] == 0xFF && file[frame + 1] == 0xC0)) ++frame;
  CHECK(error_of(with("jpeg-200x150", frame + 5, {0xFD, 0xE8, 0xFD, 0xE8}))
            .find("image too large (65000 x 65000") == 0);
  CHECK(!error_of(with("jpeg-200x150", frame + 5, {0, 0, 0, 0})).empty());
  // A PNG's header is under a checksum, so a large one is made up whole by changing both.
  CHECK(!error_of(with("png-rgb-37x19", 16, {0x7F, 0xFF, 0xFF, 0xFF, 0x7F, 0xFF, 0xFF, 0xFF})).empty());
  CHECK(!error_of(with("png-rgb-37x19", 16, {0, 0, 0, 0})).empty());
}

TEST_CASE("a JPEG's codes read by ourselves: libjpeg's pixels, and libjpeg's answer to every damage") {
  std::mt19937 random(11);
  std::vector<const GoldenPicture*> small;
  int pictures = 0, damaged = 0, refused = 0;
  const auto same = [&](std::span<const uint8_t> file) {
    std::string errors[2];
    Image images[2];
    for (const bool own : {false, true}) {
      try {
        decode_image(images[own], file, {.max_image_pixels = 1'000'000, .own_jpeg_codes = own});
      } catch (const Error& error) {
        errors[own] = error.what();
      }
    }
    CHECK_EQ(errors[0], errors[1]);
    if (errors[0].empty()) CHECK(images[0].pixels == images[1].pixels);
    return errors[0].empty();
  };
  for (const GoldenPicture& picture : golden_pictures()) {
    if (picture.file[0] != 0xFF) continue;
    CAPTURE(picture.name);
    CHECK(same(picture.file));
    ++pictures;
    if (picture.height * picture.width <= 4000) small.push_back(&picture);
  }
  CHECK(pictures > 50);
  for (int i = 0; i < 6000; ++i) {
    const GoldenPicture& picture = *small[random() % small.size()];
    CAPTURE(picture.name);
    std::vector<uint8_t> file = picture.file;
    const size_t at = file.size() / 4 + random() % (file.size() * 3 / 4);  // mostly behind the headers
    switch (random() % 4) {
      case 0:
        file[at] = static_cast<uint8_t>(random());
        break;
      case 1:
        file[at] ^= static_cast<uint8_t>(1u << random() % 8);
        break;
      case 2:
        file.erase(file.begin() + static_cast<std::ptrdiff_t>(at));
        break;
      default:  // markers where none may be, also of restarts
        file.insert(file.begin() + static_cast<std::ptrdiff_t>(at),
                    {255, static_cast<uint8_t>(random() % 2 ? 0xD0 + random() % 10 : random())});
    }
    ++damaged;
    refused += !same(file);
  }
  CHECK(refused > 10);
  CHECK(refused < damaged / 2);
}

TEST_CASE("fast decoding: a part of the size, and nearly the same picture after resizing") {
  for (const char* name : {"jpeg-200x150", "jpeg-grey-21x13", "jpeg-cmyk-21x13"}) {
    const GoldenPicture& picture = golden(name);
    CAPTURE(name);
    const Image whole = decode_image(picture.file);
    const int64_t edge = std::min(whole.height, whole.width);
    for (const int64_t part : {1, 2, 4, 8}) {
      CAPTURE(part);
      // The edge that allows this part and no smaller one.
      const Image fast = decode_image(picture.file, {.fast_decode_edge = edge / part});
      CHECK_EQ(fast.height, (whole.height + part - 1) / part);
      CHECK_EQ(fast.width, (whole.width + part - 1) / part);
      if (part == 1) CHECK(fast.pixels == whole.pixels);
      const Image a = resize(whole, 8, 8, Interpolation::bicubic),
                  b = resize(fast, 8, 8, Interpolation::bicubic);
      double difference = 0;
      for (size_t i = 0; i < a.pixels.size(); ++i) difference += std::abs(a.pixels[i] - b.pixels[i]);
      CHECK(difference / static_cast<double>(a.pixels.size()) < (edge / part >= 16 ? 3 : 40));
    }
    CHECK(decode_image(picture.file, {.fast_decode_edge = edge}).pixels == whole.pixels);
    CHECK(decode_image(picture.file, {.fast_decode_edge = edge + 1}).pixels == whole.pixels);
  }
  // Other formats have no such way.
  const GoldenPicture& png = golden("png-rgb-37x19");
  CHECK(decode_image(png.file, {.fast_decode_edge = 2}).pixels == decode_image(png.file).pixels);
}

TEST_CASE("random damage is decoded or refused, never worse") {
  std::mt19937 random(7);
  std::vector<const GoldenPicture*> small;
  for (const GoldenPicture& picture : golden_pictures())
    if (picture.height * picture.width <= 4000 && (kWebp || !is_webp(picture))) small.push_back(&picture);
  int decoded = 0, refused = 0;
  for (int i = 0; i < 10000; ++i) {
    std::vector<uint8_t> file = small[random() % small.size()]->file;
    const int changes = 1 + static_cast<int>(random() % 8);
    for (int change = 0; change < changes; ++change) {
      const size_t at = random() % file.size();
      switch (random() % 4) {
        case 0:
          file[at] = static_cast<uint8_t>(random());
          break;
        case 1:
          file[at] ^= static_cast<uint8_t>(1u << random() % 8);
          break;
        case 2:
          file.erase(file.begin() + static_cast<std::ptrdiff_t>(at));
          break;
        default:
          file.insert(file.begin() + static_cast<std::ptrdiff_t>(at),
                      static_cast<uint8_t>(random() % 2 * 255));
      }
      if (file.empty()) break;
    }
    const std::string error = error_of(file, {.max_image_pixels = 1'000'000});
    (error.empty() ? decoded : refused)++;
    if (error.find('\n') != std::string::npos) FAIL("an error of two lines: ", error);
  }
  CHECK(decoded > 1000);
  CHECK(refused > 1000);
}
