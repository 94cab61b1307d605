// chart.h: line charts as one self-contained SVG file, written without any library.
//
//   title
//   panel title                         legend      panels lie below one another; each has its own axes
//   |      /\    |                                  marks are dashed vertical lines (spikes, restarts)
//   |_____/  \___|_____
//            x label
//
// Long series are thinned to at most 1500 points, the smallest and the largest of every bucket, so that a
// spike of one step stays visible. A point that is not finite (or not positive on a logarithmic axis) leaves
// a gap in the line.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace switchback {

struct Series {
  std::string name;
  std::vector<double> x, y;  // of the same length, x ascending
};

struct Panel {
  std::string title;
  std::vector<Series> series;
  std::vector<double> marks = {};  // x positions
  std::string x_label = "step";
  bool log_y = false;
};

std::string svg_chart(std::string_view title, const std::vector<Panel>& panels);

// Bars that stand in groups, one of each series in a group, on an axis that begins at 0.
//
//   title                              legend
//   | 1.41x     1.32x |                 `marks` are dashed horizontal lines
//   |-[ ]-[ ]---[ ]-[ ]-
//     group     group
struct BarGroup {
  std::string name;
  std::vector<double> values = {};      // of each series; one that is not finite leaves its place empty
  std::vector<std::string> texts = {};  // above each bar; may be fewer
};

struct BarChart {
  std::string title, y_label;
  std::vector<std::string> series = {};
  std::vector<BarGroup> groups = {};
  std::vector<double> marks = {};
};

std::string svg_bars(const BarChart& chart);

}  // namespace switchback
