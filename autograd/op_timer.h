// op_timer.h: where a step's time goes, by op, without waiting for the device between ops.
//
//   OpTimer timer(device);
//   ... forward, tape().backward(loss) ...   every op ends a stretch of its own
//   optimizer.update();  timer.lap("optimizer");
//   for (const OpTimer::Line& line : timer.table()) ...
//
// While it lives it watches the ops of its thread: after each one a Moment goes into the device's queue, and
// the time of an op is the time from the Moment before. So what follows an op without being one itself counts
// to the next op, and a device that waits for the host counts that wait, too: on a GPU the small ops of a
// small model look as slow as their launches. A step that is replayed as a graph has no ops to watch;
// TrainingStep runs it op by op while a timer lives. Profilers that show NVTX ranges see the regions of the
// model and the ops of the backward pass.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/timeline.h"
#include "runtime/device.h"

namespace switchback {

class OpTimer {
 public:
  explicit OpTimer(Device device);  // one at a time in a thread
  ~OpTimer();
  OpTimer(const OpTimer&) = delete;

  void start();                     // what was called before counts to nobody (the pause between two steps)
  void lap(std::string_view name);  // ends a stretch that is not an op

  struct Line {
    std::string name;  // "gelu forward", "gelu backward", "linear input gradient", a lap's name
    int64_t calls = 0;
    double seconds = 0;
  };
  // The longest first; waits for the device once.
  std::vector<Line> table() const;
  // The table as text: calls, milliseconds and share of each op, by step.
  std::string text(int64_t steps) const;

 private:
  void end_stretch(std::string name);

  struct Stretch {
    std::string name;  // empty: the start of a sequence
    std::unique_ptr<Moment> end;
  };
  Device device_;
  std::vector<Stretch> stretches_;
  bool told_in_parts_ = false;  // the closure that is running
};

}  // namespace switchback
