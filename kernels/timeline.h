// timeline.h: moments in a device's work, and work that a device can repeat by itself.
//
// A GPU works through a queue while the host goes on. A Moment is a place in that queue: it has passed when
// everything called before it is done. A Recording is a stretch of calls that was written down instead of
// being done (a CUDA graph); replay() puts all of it into the queue at once, for the price of one call.
#pragma once

namespace switchback {

class Moment {
 public:
  virtual ~Moment() = default;
  virtual bool passed() const = 0;  // does not wait
  virtual void wait() const = 0;    // until it has passed
  // Seconds between two moments of one device; waits for both.
  virtual double seconds_since(const Moment& earlier) const = 0;
};

class Recording {
 public:
  virtual ~Recording() = default;
  // Does the recorded calls again, on the same addresses. The memory they took and gave back while they were
  // recorded may serve others between two replays; an error when somebody still holds a part of it now.
  virtual void replay() = 0;
};

}  // namespace switchback
