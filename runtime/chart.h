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

}  // namespace switchback
