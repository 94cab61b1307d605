// Resizing and cropping: Pillow's bytes, the fast passes against the plain ones, and where RandomResizedCrop
// cuts.
#include <algorithm>
#include <random>
#include <set>

#include "data/augment.h"
#include "data/resize_passes.h"
#include "runtime/check.h"
#include "tests/data/image_golden.h"

#undef CHECK  // from here on it is doctest's
#include <doctest/doctest.h>

using namespace switchback;

namespace {

struct Random {
  double uniform_double() { return std::uniform_real_distribution<double>(0.0, 1.0)(engine); }
  uint64_t below(uint64_t n) { return std::uniform_int_distribution<uint64_t>(0, n - 1)(engine); }
  std::mt19937_64 engine{11};
};

Image random_image(int64_t height, int64_t width, uint32_t seed) {
  std::mt19937 random(seed);
  Image image{height, width, std::vector<uint8_t>(static_cast<size_t>(height * width * 3))};
  // Mostly extremes: they overshoot, so that clipping is met on both sides.
  for (uint8_t& byte : image.pixels) {
    const uint32_t value = random();
    byte = value & 256 ? static_cast<uint8_t>(value) : (value & 512 ? 255 : 0);
  }
  return image;
}

bool same(const Image& a, const Image& b) {
  return a.height == b.height && a.width == b.width && a.pixels == b.pixels;
}

bool is_readable(const GoldenPicture& picture) {
#ifdef SWITCHBACK_WEBP
  (void)picture;
  return true;
#else
  return picture.name.rfind("webp", 0) != 0;
#endif
}

}  // namespace

TEST_CASE("resizes, crops and evaluation transforms equal Pillow's on every golden picture") {
  int compared = 0;
  for (const GoldenPicture& picture : golden_pictures()) {
    if (!is_readable(picture)) continue;
    const Image image = decode_image(picture.file);
    for (const GoldenResult& result : picture.results) {
      CAPTURE(picture.name);
      CAPTURE(static_cast<int>(result.kind));
      CAPTURE(static_cast<int>(result.interpolation));
      CAPTURE(static_cast<int>(result.mode));
      CAPTURE(result.height);
      CAPTURE(result.width);
      Image got;
      if (result.kind == GoldenResult::resize)
        got = resize(image, result.height, result.width, result.interpolation);
      else if (result.kind == GoldenResult::crop_and_resize)
        resize(got, image, result.box, result.height, result.width, result.interpolation);
      else
        got = evaluation_transform(image, result.height, result.mode, result.interpolation);
      CHECK_EQ(got.height, result.height);
      CHECK_EQ(got.width, result.width);
      CHECK_EQ(hash_of(got.pixels), result.hash);
      ++compared;
    }
  }
  CHECK(compared > 1000);
}

TEST_CASE("the fast passes of a resize equal the plain ones on odd sizes") {
  const int64_t sizes[] = {1, 2, 3, 4, 5, 7, 8, 10, 11, 13, 16, 31, 32, 33, 64, 97, 224};
  std::mt19937 random(5);
  const auto pick = [&](const auto& from) { return from[random() % std::size(from)]; };
  for (uint32_t i = 0; i < 600; ++i) {
    const Image image = random_image(pick(sizes), pick(sizes), i);
    const int64_t height = pick(sizes), width = pick(sizes);
    const Interpolation interpolation = i % 3 == 0 ? Interpolation::bilinear : Interpolation::bicubic;
    CropBox box{0, 0, image.height, image.width};
    if (i % 2 == 0) {
      box.height = 1 + static_cast<int64_t>(random()) % image.height;
      box.width = 1 + static_cast<int64_t>(random()) % image.width;
      box.top = static_cast<int64_t>(random()) % (image.height - box.height + 1);
      box.left = static_cast<int64_t>(random()) % (image.width - box.width + 1);
    }
    Image fast;
    resize(fast, image, box, height, width, interpolation);
    CAPTURE(image.height);
    CAPTURE(image.width);
    CAPTURE(height);
    CAPTURE(width);
    CHECK(same(fast, resize_by_definition(image, box, height, width, interpolation)));

    // A window is that part of the whole.
    CropBox window;
    window.height = 1 + static_cast<int64_t>(random()) % height;
    window.width = 1 + static_cast<int64_t>(random()) % width;
    window.top = static_cast<int64_t>(random()) % (height - window.height + 1);
    window.left = static_cast<int64_t>(random()) % (width - window.width + 1);
    Image part, cut;
    resize_window(part, image, box, height, width, window, interpolation);
    resize(cut, fast, window, window.height, window.width);  // the same size: a copy
    CHECK(same(part, cut));
  }
}

TEST_CASE("pixels outside the box have no influence") {
  const Image image = random_image(40, 50, 1);
  const CropBox box{7, 9, 21, 30};
  Image cut, direct;
  resize(cut, image, box, box.height, box.width);
  resize(direct, image, box, 13, 11);
  CHECK(same(direct, resize(cut, 13, 11)));
}

TEST_CASE("a box outside of the image is refused") {
  const Image image = random_image(4, 4, 1);
  Image to;
  CHECK_THROWS_AS(resize(to, image, {0, 0, 5, 4}, 2, 2), Error);
  CHECK_THROWS_AS(resize(to, image, {1, 0, 4, 4}, 2, 2), Error);
  CHECK_THROWS_AS(resize(to, image, {0, 0, 4, 4}, 0, 2), Error);
}

TEST_CASE("a picture 200000 pixels long costs only the part that is seen") {
  const Image image = random_image(1, 200000, 3);  // whole, the shorter edge at 224 would be 30 GB
  const Image seen = evaluation_transform(image, 224);
  CHECK_EQ(seen.height, 224);
  CHECK_EQ(seen.width, 224);
}

TEST_CASE("random resized crop: every box is inside, of 0.9 to 1 of the area, within the ratios") {
  Random random;
  const CropOptions options;
  double least = 1.0, most = 0.0;
  std::set<int64_t> tops;
  for (int i = 0; i < 20000; ++i) {
    const CropBox box = random_resized_crop(300, 320, options, random);
    CHECK((box.top >= 0 && box.left >= 0 && box.top + box.height <= 300 && box.left + box.width <= 320));
    const double area = static_cast<double>(box.height * box.width) / (300.0 * 320.0);
    least = std::min(least, area);
    most = std::max(most, area);
    tops.insert(box.top);
    // Rounding the sides moves both figures by less than 1 %.
    CHECK((area > 0.895 && area <= 1.0));
    const double ratio = static_cast<double>(box.width) / static_cast<double>(box.height);
    CHECK((ratio > 0.74 && ratio < 1.35));
  }
  CHECK(least < 0.91);
  CHECK(most > 0.99);
  CHECK(tops.size() > 20);
}

TEST_CASE("random resized crop falls back to the centred box at the nearest ratio") {
  Random random;
  const CropOptions options;
  const auto box_of = [&](int64_t height, int64_t width) {
    return random_resized_crop(height, width, options, random);
  };
  const auto equal = [](const CropBox& a, const CropBox& b) {
    return a.top == b.top && a.left == b.left && a.height == b.height && a.width == b.width;
  };
  for (int i = 0; i < 20; ++i) {
    CHECK(equal(box_of(480, 720), {0, 40, 480, 640}));  // 3:2
    CHECK(equal(box_of(720, 480), {40, 0, 640, 480}));
    CHECK(equal(box_of(1080, 1920), {0, 240, 1080, 1440}));  // 16:9
    CHECK(equal(box_of(3, 700), {0, 348, 3, 4}));
    CHECK(equal(box_of(900, 2), {448, 0, 3, 2}));  // round(2 / 0.75) = 3
    CHECK(equal(box_of(1, 900), {0, 449, 1, 1}));
  }
  // Within the ratios the whole picture is taken, when the tries have failed.
  CHECK(equal(fallback_crop(100, 120, options), {0, 0, 100, 120}));
}

TEST_CASE("a try rounds as Python does: to the even neighbour at a half") {
  CropOptions options;
  options.scale[0] = options.scale[1] = 1.0;
  options.ratio[0] = options.ratio[1] = 1.0;
  // sqrt(6.25) = 2.5, sqrt(12.25) = 3.5: 25 x 1 pixels at a quarter of the area, 49 x 1 at a quarter.
  options.scale[0] = options.scale[1] = 0.25;
  CHECK_EQ(crop_try(1, 25, options, 0.5, 0.5).width, 2);
  CHECK_EQ(crop_try(1, 49, options, 0.5, 0.5).height, 4);
}

TEST_CASE("evaluation sizes and the centre are torchvision's") {
  CHECK_EQ(evaluation_size(375, 500, 224, ResizeMode::shortest).width, 298);  // int(298.67)
  CHECK_EQ(evaluation_size(500, 375, 224, ResizeMode::shortest).height, 298);
  CHECK_EQ(evaluation_size(100, 301, 224, ResizeMode::longest).height, 74);  // round(74.42)
  CHECK_EQ(evaluation_size(1, 900, 224, ResizeMode::longest).height, 1);
  CHECK_EQ(center_box(5, 9, 4).top, 0);   // round(0.5) = 0
  CHECK_EQ(center_box(7, 9, 4).top, 2);   // round(1.5) = 2
  CHECK_EQ(center_box(7, 9, 4).left, 2);  // round(2.5) = 2
  CHECK_EQ(center_box(1, 9, 4).top, -1);  // 3 rows of padding: 1 above, 2 below
}

TEST_CASE("names of interpolations and modes") {
  CHECK(parse_interpolation("bilinear") == Interpolation::bilinear);
  CHECK(parse_resize_mode("squash") == ResizeMode::squash);
  CHECK_THROWS_WITH(parse_resize_mode("crop"),
                    "image resize mode 'crop' is unknown: choose shortest, longest or squash");
  CHECK_THROWS_AS(parse_interpolation("lanczos"), Error);
}

TEST_CASE("the training transform gives the same bytes for the same draws, and reuses its memory") {
  const Image image = random_image(120, 150, 9);
  Random a, b;
  Image to = train_transform(image, 64, {}, a);
  const Image again = train_transform(image, 64, {}, b);
  CHECK(same(to, again));
  CHECK_EQ(to.height, 64);
  const uint8_t* memory = to.pixels.data();
  train_transform(to, image, 64, {}, a);
  CHECK(to.pixels.data() == memory);
  CHECK(!same(to, again));
}
