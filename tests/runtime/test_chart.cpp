// The SVG chart: well-formed, finite coordinates inside the picture, spikes kept, gaps kept, hostile values
// survived.
#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "runtime/chart.h"
#include "runtime/file.h"
#include "tests/runtime/temporary_folder.h"

#undef CHECK  // from here on it is doctest's
#include <doctest/doctest.h>

using namespace switchback;

namespace {

constexpr double inf = std::numeric_limits<double>::infinity();

// Every tag is closed in order, every attribute is quoted, no bare & or <. Empty when well-formed.
std::string xml_error(const std::string& xml) {
  std::vector<std::string> open;
  for (size_t i = 0; i < xml.size();) {
    if (xml[i] == '&') {
      const std::string entity = xml.substr(i, xml.find(';', i) + 1 - i);
      if (entity != "&lt;" && entity != "&gt;" && entity != "&amp;" && entity != "&quot;") return "bare &";
      ++i;
    } else if (xml[i] == '<') {
      const size_t end = xml.find('>', i);
      if (end == xml.npos) return "tag without end";
      const std::string tag = xml.substr(i, end + 1 - i);
      const size_t from = tag[1] == '/' ? 2 : 1;
      const std::string name = tag.substr(from, tag.find_first_of(" />", from) - from);
      if (name.empty() ||
          !std::all_of(name.begin(), name.end(), [](char c) { return c >= 'a' && c <= 'z'; })) {
        return "no tag: " + tag;
      }
      if (from == 2) {
        if (open.empty() || open.back() != name) return "closes the wrong tag: " + tag;
        open.pop_back();
      } else {
        if (std::count(tag.begin(), tag.end(), '"') % 2) return "quotes: " + tag;
        if (tag[tag.size() - 2] != '/') open.push_back(name);
      }
      i = end + 1;
    } else {
      ++i;
    }
  }
  return open.empty() ? "" : "not closed: " + open.back();
}

void check_picture(const std::string& svg) {
  CHECK_EQ(xml_error(svg), "");
  CHECK_FALSE(contains(svg, "nan"));
  CHECK_FALSE(contains(svg, "inf"));
  // Every number of a position: attributes x="...", cy="...", and the letters of paths.
  for (size_t at = 0; at < svg.size(); ++at) {
    const char c = svg[at];
    const bool path =
        (c == 'M' || c == 'L' || c == 'V' || c == 'H') && svg[at + 1] != 'e';  // not "Helvetica"
    const bool attribute =
        c == '"' && at >= 2 && svg[at - 1] == '=' && (svg[at - 2] == 'x' || svg[at - 2] == 'y');
    if ((!path && !attribute) || !(std::isdigit(svg[at + 1]) || svg[at + 1] == '-')) continue;
    const double value = std::atof(svg.c_str() + at + 1);
    REQUIRE_GE(value, 0);
    REQUIRE_LE(value, 2000);
  }
}

size_t count(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t at = text.find(part); at != text.npos; at = text.find(part, at + 1)) ++n;
  return n;
}

}  // namespace

TEST_CASE("chart: titles, legends, ticks and marks are there") {
  Panel loss{"loss", {{"train", {0, 50, 100}, {4, 3, 2}}, {"validation <1 & 2>", {0, 100}, {4.5, 2.5}}}};
  loss.marks = {25, 1000, std::nan("")};
  Panel rate{"learning rate", {{"learning rate", {0, 100}, {1e-5, 1e-3}}}};
  rate.log_y = true;
  const std::string svg = svg_chart("a \"run\"", {loss, rate});
  check_picture(svg);
  for (const char* part : {"a &quot;run&quot;", ">validation &lt;1 &amp; 2&gt;<", ">2.5<", ">4<", ">100<",
                           ">1e-5<", ">0.001<", ">step<"}) {
    CHECK_MESSAGE(contains(svg, part), part);
  }
  CHECK_EQ(count(svg, ">learning rate<"), 1);   // one series of the panel's name needs no legend
  CHECK_EQ(count(svg, "stroke-dasharray"), 1);  // marks outside of the axis are not drawn
}

TEST_CASE("chart: hostile values give a picture all the same") {
  const double nan = std::nan("");
  const double huge = std::numeric_limits<double>::max(), tiny = std::numeric_limits<double>::denorm_min();
  for (const std::vector<double>& y : std::vector<std::vector<double>>{{},
                                                                       {1},
                                                                       {0},
                                                                       {nan},
                                                                       {inf},
                                                                       {1, nan, 2},
                                                                       {-inf, 1, inf},
                                                                       {5, 5, 5},
                                                                       {0, 0},
                                                                       {-1, -2},
                                                                       {huge, -huge},
                                                                       {tiny, tiny},
                                                                       {0, tiny},
                                                                       {huge, huge},
                                                                       {1e-300, 1e300},
                                                                       {1, 1 + 1e-16},
                                                                       {1e9, 1e9 + 1},
                                                                       {nan, nan, 3}}) {
    for (bool log : {false, true}) {
      Series s{"s", {}, y};
      for (size_t i = 0; i < y.size(); ++i) s.x.push_back(static_cast<double>(i));
      Panel panel{"p", {s}};
      panel.log_y = log;
      CAPTURE(y.size());
      check_picture(svg_chart("t", {panel}));
      std::swap(panel.series[0].x, panel.series[0].y);
      check_picture(svg_chart("t", {panel}));
    }
  }
  check_picture(svg_chart("", {}));
  check_picture(svg_chart("", {Panel{}}));
  CHECK(contains(svg_chart("", {Panel{}}), "no data"));
  CHECK_THROWS_AS(svg_chart("", {Panel{"p", {{"s", {1, 2}, {1}}}}}), Error);
}

TEST_CASE("chart: a long series is thinned, and a spike of one point survives it") {
  Series s{"s", {}, {}};
  for (int i = 0; i < 100000; ++i) {
    s.x.push_back(i);
    s.y.push_back(i == 54321 ? 100 : std::sin(i * 0.001));
  }
  const std::string svg = svg_chart("t", {Panel{"p", {s}}});
  check_picture(svg);
  CHECK_LE(count(svg, "L"), 1500);
  CHECK_GE(count(svg, "L"), 700);
  CHECK_LT(svg.size(), 40000);
  s.y[54321] = 0;
  CHECK_FALSE(contains(svg_chart("t", {Panel{"p", {s}}}), ">100<"));
  CHECK(contains(svg, ">100<"));
  // It is drawn: 4 % margin on 101 leave its tip 168 * 0.04 / 1.08 = 6.2 pixels below the plot's upper
  // edge, 82.
  CHECK(contains(svg, "L546.8 88.2"));
}

TEST_CASE("chart: what is not finite leaves a gap") {
  const std::string svg = svg_chart(
      "t", {Panel{"p", {{"s", {0, 1, 2, 3, 4, 5, 6}, {1, 2, std::nan(""), 2, std::nan(""), 1, 2}}}}});
  const size_t line = svg.find("stroke-linejoin");
  const std::string path = svg.substr(line, svg.find("/>", line) - line);
  CHECK_EQ(count(path, "M"), 3);
  CHECK_EQ(count(path, "L"), 2);
  CHECK_EQ(count(svg, "<circle"), 1);  // the lone point in the middle
}

TEST_CASE("chart: a sample to look at, when SWITCHBACK_CHART names a file") {
  const char* path = std::getenv("SWITCHBACK_CHART");
  if (!path) return;
  std::mt19937 random(1);
  std::normal_distribution<double> normal;
  Series loss{"loss", {}, {}}, smooth{"mean of 100", {}, {}}, rate{"learning rate", {}, {}},
      rms{"largest of all tensors", {}, {}}, patch{"patch embedding", {}, {}},
      constant{"logit scale", {}, {}};
  double mean = 9;
  for (int i = 0; i < 20000; ++i) {
    const double x = i, spike = i > 12000 && i < 12200 ? 3 * std::exp(-(x - 12000) / 60) : 0;
    const double l = 1.2 + 7.5 * std::exp(-x / 2500) + 0.12 * normal(random) + spike;
    mean += 0.01 * (l - mean);
    for (Series* s : {&loss, &smooth, &rate, &rms, &patch, &constant}) s->x.push_back(x);
    loss.y.push_back(l);
    smooth.y.push_back(mean);
    rate.y.push_back(5e-4 * (x < 2000 ? x / 2000 : 0.5 + 0.5 * std::cos(3.14159 * (x - 2000) / 18000)));
    rms.y.push_back(1.3 * std::exp(0.25 * normal(random)) * (i == 11990 ? 40 : 1));
    patch.y.push_back(i > 15000 && i < 15400 ? std::nan("")
                                             : 0.8 * std::exp(0.1 * normal(random)) * (i == 11990 ? 25 : 1));
    constant.y.push_back(14.2857);
  }
  Panel rms_panel{"RMS of g²/u", {rms, patch}, {11990}};
  rms_panel.log_y = true;
  write_file(path, svg_chart("ViT-B-32, batch 4096", {{"loss", {loss, smooth}, {12000}},
                                                      {"learning rate", {rate}},
                                                      rms_panel,
                                                      {"logit scale", {constant}}}));
}

TEST_CASE("bars: heights in proportion, empty places, hostile values") {
  BarChart chart{.title = "speed <of> \"all\"", .y_label = "relative", .series = {"a", "b"}};
  chart.groups = {{"one", {2, 1}, {"2.00x", "1 & only"}}, {"two", {std::nan(""), 1}}, {"three", {}}};
  chart.marks = {1};
  const std::string svg = svg_bars(chart);
  check_picture(svg);
  std::vector<double> heights;  // of the bars; the ground is a <rect width=...>
  for (size_t i = svg.find("<rect x="); i != svg.npos; i = svg.find("<rect x=", i + 1))
    heights.push_back(std::atof(svg.c_str() + svg.find("height=\"", i) + 8));
  REQUIRE_EQ(heights.size(), 3);
  CHECK_EQ(heights[0], doctest::Approx(2 * heights[1]).epsilon(0.01));
  CHECK_EQ(heights[1], heights[2]);
  CHECK(contains(svg, "2.00x"));
  CHECK(contains(svg, "1 &amp; only"));

  check_picture(svg_bars({}));
  chart.groups[0].values = {1e308, inf};
  chart.marks = {inf, -inf};
  check_picture(svg_bars(chart));
}
