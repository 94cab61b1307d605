#include "autograd/op_timer.h"

#include <algorithm>
#include <cstdio>
#include <map>

#include "autograd/tape.h"
#include "kernels/kernels.h"
#include "runtime/ranges.h"

namespace switchback {

OpTimer::OpTimer(Device device) : device_(device) {
  Tape::observe([this](std::string_view, std::string_view op, const Variable&) {
    end_stretch(concat(op, " forward"));
  });
  Tape::observe_backward([this](std::string_view op, std::string_view part) {
    if (!part.empty())
      end_stretch(concat(op, " ", part));
    else if (!told_in_parts_)
      end_stretch(concat(op, " backward"));
    told_in_parts_ = !part.empty();
  });
  enable_ranges(true);
  start();
}

OpTimer::~OpTimer() {
  enable_ranges(false);
  Tape::observe({});
  Tape::observe_backward({});
}

void OpTimer::start() { end_stretch(""); }
void OpTimer::lap(std::string_view name) { end_stretch(std::string(name)); }

void OpTimer::end_stretch(std::string name) {
  stretches_.push_back({std::move(name), kernels(device_).mark()});
}

std::vector<OpTimer::Line> OpTimer::table() const {
  std::map<std::string, Line> by_name;
  for (size_t i = 1; i < stretches_.size(); ++i) {
    const Stretch& stretch = stretches_[i];
    if (stretch.name.empty()) continue;
    Line& line = by_name[stretch.name];
    line.name = stretch.name;
    line.seconds += stretch.end->seconds_since(*stretches_[i - 1].end);
    ++line.calls;
  }
  std::vector<Line> lines;
  for (auto& [name, line] : by_name) lines.push_back(line);
  std::ranges::sort(lines, [](const Line& a, const Line& b) { return a.seconds > b.seconds; });
  return lines;
}

std::string OpTimer::text(int64_t steps) const {
  const std::vector<Line> lines = table();
  const double count = static_cast<double>(std::max<int64_t>(steps, 1));
  double total = 0;
  for (const Line& line : lines) total += line.seconds;
  char row[160];
  std::snprintf(row, sizeof row, "%-36s %8s %10s %8s\n", "op", "calls", "ms/step", "share");
  std::string text = row;
  for (const Line& line : lines) {
    std::snprintf(row, sizeof row, "%-36s %8.0f %10.3f %7.1f%%\n", line.name.c_str(),
                  static_cast<double>(line.calls) / count, line.seconds / count * 1e3,
                  line.seconds / total * 100);
    text += row;
  }
  return text;
}

}  // namespace switchback
