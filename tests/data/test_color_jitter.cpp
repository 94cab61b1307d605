// Colour jitter: each change on colours whose answer is known; what is switched off draws nothing.
#include "data/color_jitter.h"

#include <doctest/doctest.h>

#include "runtime/philox.h"

using namespace switchback;

namespace {

using Pixels = std::vector<uint8_t>;

Pixels changed(Pixels pixels, ColorChange change) {
  Image image{1, static_cast<int64_t>(pixels.size() / 3), std::move(pixels)};
  change_colors(image, change);
  return image.pixels;
}
ColorChange step(ColorChange::Kind kind, double factor) {
  ColorChange change;
  change.steps[0] = {kind, factor};
  change.count = 1;
  return change;
}

const Pixels red_green_blue{255, 0, 0, 0, 255, 0, 0, 0, 255};

}  // namespace

TEST_CASE("each change of colour") {
  CHECK(changed({10, 100, 200}, step(ColorChange::brightness, 1.5)) == Pixels{15, 150, 255});
  CHECK(changed({10, 100, 200}, step(ColorChange::brightness, 0)) == Pixels{0, 0, 0});
  // The mean grey of 50 and 150 is 100.
  CHECK(changed({50, 50, 50, 150, 150, 150}, step(ColorChange::contrast, 0.5)) ==
        Pixels{75, 75, 75, 125, 125, 125});
  CHECK(changed({50, 50, 50, 150, 150, 150}, step(ColorChange::contrast, 2)) ==
        Pixels{0, 0, 0, 200, 200, 200});
  CHECK(changed(red_green_blue, step(ColorChange::saturation, 0)) ==
        Pixels{76, 76, 76, 150, 150, 150, 29, 29, 29});
  CHECK(changed({90, 90, 90}, step(ColorChange::saturation, 3)) == Pixels{90, 90, 90});
  // A third of the circle: red becomes green, green blue, blue red; half of it: the complement.
  CHECK(changed(red_green_blue, step(ColorChange::hue, 1.0 / 3)) == Pixels{0, 255, 0, 0, 0, 255, 255, 0, 0});
  CHECK(changed(red_green_blue, step(ColorChange::hue, -1.0 / 3)) == Pixels{0, 0, 255, 255, 0, 0, 0, 255, 0});
  CHECK(changed({200, 100, 50}, step(ColorChange::hue, 0.5)) == Pixels{50, 150, 200});
  CHECK(changed({200, 100, 50, 7, 7, 7}, step(ColorChange::hue, 0)) == Pixels{200, 100, 50, 7, 7, 7});
  ColorChange gray;
  gray.gray = true;
  CHECK(changed(red_green_blue, gray) == Pixels{76, 76, 76, 150, 150, 150, 29, 29, 29});
}

TEST_CASE("draws of colour jitter") {
  const auto stream = [](uint64_t number) { return PhiloxStream(3, RandomPurpose::test, number); };
  PhiloxStream off = stream(0), untouched = stream(0);
  const ColorChange none = draw_colors({}, off);
  CHECK(none.count == 0);
  CHECK(!none.gray);
  CHECK(off.uniform_double() == untouched.uniform_double());

  const ColorJitter options{0.4, 0.3, 0.2, 0.1, 0.5, 0.25};
  int jittered = 0, gray = 0, hue_first = 0;
  for (uint64_t i = 0; i < 4000; ++i) {
    PhiloxStream random = stream(i);
    const ColorChange change = draw_colors(options, random);
    gray += change.gray;
    if (change.count == 0) continue;
    ++jittered;
    CHECK(change.count == 4);
    hue_first += change.steps[0].first == ColorChange::hue;
    for (const auto& [kind, factor] : change.steps) {
      const double middle = kind == ColorChange::hue ? 0 : 1;
      const double strength[] = {0.4, 0.3, 0.2, 0.1};
      CHECK(std::abs(factor - middle) <= strength[kind]);
    }
  }
  CHECK(std::abs(jittered - 2000) < 150);
  CHECK(std::abs(gray - 1000) < 130);
  CHECK(std::abs(hue_first - jittered / 4) < 100);
}
