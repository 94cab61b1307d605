#include "runtime/chart.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

#include "runtime/check.h"

namespace switchback {
namespace {

constexpr double width = 960, left = 84, right = 936;  // pixels
constexpr double head = 52, panel_height = 258, plot_top = 30, plot_height = 168;
constexpr size_t most_points = 1500;
constexpr double largest =
    std::numeric_limits<double>::max() / 16;  // beyond it sums of axis limits would overflow

// Told apart with the common kinds of colour blindness too (Okabe and Ito's palette, darkest first).
constexpr const char* colours[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9"};
constexpr size_t colour_count = std::size(colours);
constexpr const char* mark_colour = "#c62828";

template <class... Values>
std::string format(const char* pattern, Values... values) {
  char text[400];
  const int length = std::snprintf(text, sizeof text, pattern, values...);
  CHECK(length >= 0 && length < static_cast<int>(sizeof text), "chart: text too long for ", pattern);
  return text;
}

std::string escaped(std::string_view text) {
  std::string out;
  for (char c : text) {
    switch (c) {
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '&': out += "&amp;"; break;
      case '"': out += "&quot;"; break;
      default: out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
  }
  return out;
}

// "0.0005", "2.5e-7", "0", "1200", "20k", "3.5M"; `axis_end` is the larger end of the axis, which chooses the
// unit.
std::string label_of(double value, double axis_end) {
  if (value == 0) return "0";
  const double size = std::max(std::abs(value), axis_end);
  std::string text;
  if (size >= 1e15 || std::abs(value) < 1e-4) {
    text = format("%.6g", value);  // "1e-07"
    const size_t e = text.find('e');
    if (e != text.npos) {
      size_t digit = e + 2;
      while (digit + 1 < text.size() && text[digit] == '0') text.erase(digit, 1);
      if (text[e + 1] == '+') text.erase(e + 1, 1);
    }
  } else if (size >= 1e9) {
    text = format("%.6gG", value / 1e9);
  } else if (size >= 1e6) {
    text = format("%.6gM", value / 1e6);
  } else if (size >= 1e4) {
    text = format("%.6gk", value / 1e3);
  } else {
    text = format("%.6g", value);
  }
  return text;
}

struct Tick {
  double value;
  bool labelled;
};

// An axis from value to pixel; on a logarithmic one the value is replaced by its log10 first.
struct Axis {
  double low = 0, high = 1;  // of the values, or of their logarithms
  double from = 0, to = 1;   // pixels
  bool log = false;

  bool shows(double v) const { return std::isfinite(v) && (!log || v > 0); }
  double inside(double v) const { return log ? std::log10(v) : std::clamp(v, -largest, largest); }
  double pixel(double v) const {
    return from + std::clamp((inside(v) - low) / (high - low), 0.0, 1.0) * (to - from);
  }
};

// Steps of 1, 2 or 5 times a power of ten, about `wanted` of them.
std::vector<Tick> linear_ticks(const Axis& axis, int wanted) {
  const double rough = (axis.high - axis.low) / wanted;
  const double power = std::pow(10, std::floor(std::log10(rough)));
  const double step = power * (rough / power < 1.5   ? 1
                               : rough / power < 3.5 ? 2
                               : rough / power < 7.5 ? 5
                                                     : 10);
  std::vector<Tick> ticks;
  if (!(step > 0) || !std::isfinite(step)) return ticks;
  const double first = std::ceil(axis.low / step - 1e-9);
  for (int i = 0; i <= 4 * wanted; ++i) {
    double value = (first + i) * step;
    if (value > axis.high + 1e-9 * step) break;
    if (std::abs(value) < 1e-9 * step) value = 0;
    ticks.push_back({value, true});
  }
  return ticks;
}

// Powers of ten; between them 2 and 5 when there are few, and only every n-th when there are many.
std::vector<Tick> log_ticks(const Axis& axis) {
  const double span = axis.high - axis.low;
  if (span < 0.7) {  // less than a factor of 5: the steps of a linear axis read better
    Axis plain{std::pow(10, axis.low), std::pow(10, axis.high), 0, 1, false};
    return linear_ticks(plain, 4);
  }
  std::vector<Tick> ticks;
  const int every = std::max(1, static_cast<int>(std::ceil(span / 7)));
  for (int power = static_cast<int>(std::floor(axis.low)); power <= std::ceil(axis.high); ++power) {
    if (power % every != 0) continue;
    for (int factor : {1, 2, 5}) {
      if (factor > 1 && span > 3.5) break;
      const double value = factor * std::pow(10, power);
      if (std::log10(value) < axis.low - 1e-9 || std::log10(value) > axis.high + 1e-9) continue;
      ticks.push_back({value, factor == 1 || span < 2.2});
    }
  }
  return ticks;
}

// The range of all values that can be shown; a margin of 4 % for y. Without any: [0, 1].
void fit(Axis& axis, const std::vector<Series>& all, std::vector<double> Series::*values, double margin) {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (const Series& s : all) {
    for (double v : s.*values) {
      if (!axis.shows(v)) continue;
      low = std::min(low, axis.inside(v));
      high = std::max(high, axis.inside(v));
    }
  }
  if (low > high) low = 0, high = axis.log ? 0.999 : 1;
  const double least =
      axis.log ? 0.1 : std::max(std::abs(low) * 1e-6, 1e-300);  // a constant still needs a height
  if (high - low < least) {
    const double middle = low / 2 + high / 2;
    const double half = axis.log ? 0.15 : middle == 0 ? 1 : std::abs(middle) * 0.05;
    low = middle - half, high = middle + half;
  }
  axis.low = low - margin * (high - low);
  axis.high = high + margin * (high - low);
}

// Indices of the points to draw: all, or the smallest and the largest of each bucket in their order. A bucket
// with nothing to show gives one such point, which breaks the line.
std::vector<size_t> thinned(const Series& s, const Axis& y) {
  const size_t n = s.x.size();
  std::vector<size_t> kept;
  const size_t buckets = n <= most_points ? n : most_points / 2;
  for (size_t b = 0; b < buckets; ++b) {
    const size_t begin = n * b / buckets, end = n * (b + 1) / buckets;
    size_t low = begin, high = begin;
    for (size_t i = begin; i < end; ++i) {
      if (!y.shows(s.y[i])) continue;
      if (!y.shows(s.y[low]) || s.y[i] < s.y[low]) low = i;
      if (!y.shows(s.y[high]) || s.y[i] > s.y[high]) high = i;
    }
    kept.push_back(std::min(low, high));
    if (low != high) kept.push_back(std::max(low, high));
  }
  return kept;
}

std::string line_of(const Series& s, const Axis& x, const Axis& y, const char* colour) {
  std::string path, dots;
  bool drawing = false;
  size_t run = 0;
  double last_x = 0, last_y = 0;
  const auto end_run = [&] {  // a point on its own would be an invisible line
    if (run == 1)
      dots += format("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"2\" fill=\"%s\"/>\n", last_x, last_y, colour);
    run = 0;
  };
  for (size_t i : thinned(s, y)) {
    if (!y.shows(s.y[i]) || !x.shows(s.x[i])) {
      end_run();
      drawing = false;
      continue;
    }
    last_x = x.pixel(s.x[i]), last_y = y.pixel(s.y[i]);
    path += format("%s%.1f %.1f", drawing ? "L" : "M", last_x, last_y);
    drawing = true;
    ++run;
  }
  end_run();
  if (path.empty()) return "";
  return format("<path fill=\"none\" stroke=\"%s\" stroke-width=\"1.5\" stroke-linejoin=\"round\" d=\"",
                colour) +
         path + "\"/>\n" + dots;
}

std::string grid_of(const Axis& x, const Axis& y) {
  std::string out;
  const double y_end = y.log ? 0 : std::max(std::abs(y.low), std::abs(y.high));
  const double x_end = std::max(std::abs(x.low), std::abs(x.high));
  for (const Tick& tick : y.log ? log_ticks(y) : linear_ticks(y, 5)) {
    const double at = y.pixel(tick.value);
    out += format("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\"/>\n", left, at, right,
                  at, tick.labelled ? "#e3e6ea" : "#f2f4f6");
    if (tick.labelled) {
      out += format("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\" class=\"tick\">%s</text>\n", left - 8,
                    at + 4, label_of(tick.value, y_end).c_str());
    }
  }
  for (const Tick& tick : linear_ticks(x, 8)) {
    const double at = x.pixel(tick.value);
    out += format("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"#eef0f3\"/>\n", at, y.to,
                  at, y.from);
    out += format("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\" class=\"tick\">%s</text>\n", at,
                  y.from + 17, label_of(tick.value, x_end).c_str());
  }
  return out;
}

// One text that ends at the right border, so that the widths of the names need not be known.
std::string legend_of(const Panel& panel, double baseline) {
  if (panel.series.size() < 2 && (panel.series.empty() || panel.series[0].name == panel.title)) return "";
  std::string out =
      format("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\" class=\"legend\">", right, baseline);
  for (size_t i = 0; i < panel.series.size(); ++i) {
    out += format("<tspan dx=\"%d\" fill=\"%s\">\u25cf</tspan><tspan dx=\"5\">", i ? 16 : 0,
                  colours[i % colour_count]) +
           escaped(panel.series[i].name) + "</tspan>";
  }
  return out + "</text>\n";
}

std::string marks_of(const std::vector<double>& marks, const Axis& x, const Axis& y) {
  std::string out;
  double last = -10;
  for (double mark : marks) {
    if (!std::isfinite(mark) || mark < x.low || mark > x.high) continue;
    const double at = x.pixel(mark);
    if (std::abs(at - last) < 0.5) continue;  // nothing new to see
    last = at;
    out += format(
        "<path d=\"M%.1f %.1fV%.1f\" stroke=\"%s\" stroke-dasharray=\"3 3\" stroke-opacity=\"0.55\"/>\n", at,
        y.from, y.to, mark_colour);
    out += format("<path d=\"M%.1f %.1fl-4 -6h8z\" fill=\"%s\"/>\n", at, y.to, mark_colour);
  }
  return out;
}

std::string panel_of(const Panel& panel, double top) {
  for (const Series& s : panel.series) {
    CHECK(s.x.size() == s.y.size(), "chart: series ", s.name, " has ", s.x.size(), " x and ", s.y.size(),
          " y");
  }
  Axis x{0, 1, left, right, false};
  Axis y{0, 1, top + plot_top + plot_height, top + plot_top, panel.log_y};
  fit(x, panel.series, &Series::x, 0);
  fit(y, panel.series, &Series::y, 0.04);

  std::string out = format("<text x=\"%.1f\" y=\"%.1f\" class=\"panel\">", left, top + 16) +
                    escaped(panel.title) + "</text>\n";
  out += legend_of(panel, top + 16) + grid_of(x, y);
  std::string lines;
  for (size_t i = 0; i < panel.series.size(); ++i)
    lines += line_of(panel.series[i], x, y, colours[i % colour_count]);
  if (lines.empty()) {
    lines = format("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\" class=\"legend\">no data</text>\n",
                   (left + right) / 2, (y.from + y.to) / 2);
  }
  out += marks_of(panel.marks, x, y) + lines;
  out += format("<path d=\"M%.1f %.1fV%.1fH%.1f\" fill=\"none\" stroke=\"#5f6b7a\"/>\n", left, y.to, y.from,
                right);
  out += format("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\" class=\"legend\">", (left + right) / 2,
                y.from + 35) +
         escaped(panel.x_label) + "</text>\n";
  return out;
}

// The opening tag, the styles, a white ground (so that it reads on a dark page too) and the title.
std::string head_of(std::string_view title, double height) {
  std::string out = format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" width=\"%.0f\" height=\"%.0f\" ",
      width, height, width, height);
  out +=
      "font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\">\n"
      "<style>.title{font-size:19px;font-weight:bold;fill:#1b2733}.panel{font-size:14px;font-weight:bold;"
      "fill:#1b2733}"
      ".tick{font-size:12px;fill:#4a5563}.legend{font-size:12.5px;fill:#2f3b48}</style>\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n";
  return out + format("<text x=\"%.1f\" y=\"32\" class=\"title\">", left) + escaped(title) + "</text>\n";
}

std::string text_at(double x, double y, const char* anchor, const char* style, std::string_view text) {
  return format("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" class=\"%s\">", x, y, anchor, style) +
         escaped(text) + "</text>\n";
}

}  // namespace

std::string svg_chart(std::string_view title, const std::vector<Panel>& panels) {
  std::string out = head_of(title, head + panel_height * static_cast<double>(panels.size()));
  for (size_t i = 0; i < panels.size(); ++i)
    out += panel_of(panels[i], head + panel_height * static_cast<double>(i));
  return out + "</svg>\n";
}

std::string svg_bars(const BarChart& chart) {
  constexpr double plot = 230;  // pixels: the height of the axis
  Panel legend{chart.y_label, {}};
  for (const std::string& name : chart.series) legend.series.push_back({name, {}, {}});

  double highest = 0;
  for (const BarGroup& group : chart.groups)
    for (double v : group.values)
      if (std::isfinite(v)) highest = std::max(highest, v);
  for (double v : chart.marks)
    if (std::isfinite(v)) highest = std::max(highest, v);
  Axis y{0, 1, head + plot_top + plot, head + plot_top, false};
  if (highest > 0) y.high = std::min(highest, largest) * 1.12;  // room for the texts

  std::string out = head_of(chart.title, head + plot_top + plot + 44);
  out += text_at(left, head + 16, "start", "panel", chart.y_label) + legend_of(legend, head + 16);
  for (const Tick& tick : linear_ticks(y, 5)) {
    const double at = y.pixel(tick.value);
    out += format("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"#e3e6ea\"/>\n", left, at,
                  right, at);
    out += text_at(left - 8, at + 4, "end", "tick", label_of(tick.value, y.high));
  }
  const double group_width = (right - left) / std::max<double>(1, static_cast<double>(chart.groups.size()));
  const double bar = 0.8 * group_width / std::max<double>(1, static_cast<double>(chart.series.size()));
  for (size_t g = 0; g < chart.groups.size(); ++g) {
    const BarGroup& group = chart.groups[g];
    const double from = left + group_width * (static_cast<double>(g) + 0.1);
    CHECK(group.values.size() <= chart.series.size(), "chart: group ", group.name, " has ",
          group.values.size(), " values of ", chart.series.size(), " series");
    for (size_t i = 0; i < group.values.size(); ++i) {
      if (!std::isfinite(group.values[i])) continue;
      const double x = from + bar * static_cast<double>(i), top = y.pixel(std::max(0.0, group.values[i]));
      out += format("<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\"/>\n",
                    x + 0.05 * bar, top, 0.9 * bar, y.from - top, colours[i % colour_count]);
      if (i < group.texts.size()) out += text_at(x + bar / 2, top - 5, "middle", "tick", group.texts[i]);
    }
    out += text_at(left + group_width * (static_cast<double>(g) + 0.5), y.from + 20, "middle", "legend",
                   group.name);
  }
  for (double mark : chart.marks)
    if (std::isfinite(mark))
      out += format("<path d=\"M%.1f %.1fH%.1f\" stroke=\"%s\" stroke-dasharray=\"3 3\"/>\n", left,
                    y.pixel(mark), right, mark_colour);
  out += format("<path d=\"M%.1f %.1fV%.1fH%.1f\" fill=\"none\" stroke=\"#5f6b7a\"/>\n", left, y.to, y.from,
                right);
  return out + "</svg>\n";
}

}  // namespace switchback
