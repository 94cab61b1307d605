// watch.h: no rank waits for one that will never come.
//
// Every rank has a thread that tells rank 0 once a second, and soon after it changed, where the rank is
// ("forward of step 12") and hears from it. Rank 0 notices
//   a rank that died       its connection closes without a goodbye
//   a rank that throws     it says so itself: report()
//   a rank that hangs      it is at one place for longer than it asked for there, while others wait
//   a machine that froze   it has said nothing for silence_seconds
// and tells everybody: which rank, where it was, why. Waits of the main thread end with that line then
// (check(), on_fault()); a main thread that does not come out of whatever it is in has its process ended.
// When rank 0 itself dies, the others notice by the same signs.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "distributed/rendezvous.h"

namespace switchback {

class Watch {
 public:
  struct Options {
    double beat_seconds = 1;          // between two signs of life
    double silence_seconds = 15;      // without one: that host is gone
    double standstill_seconds = 300;  // all ranks wait for each other: the network, or a GPU, hangs
    double leave_seconds = 8;         // for the main thread to end after a fault
  };

  // control: Meeting::control. One rank: does nothing.
  Watch(int rank, std::vector<Member> members, std::vector<Socket> control, Options options);
  // Says goodbye, and on rank 0 waits for everybody's; not during an exception: that is a fault.
  ~Watch();
  Watch(const Watch&) = delete;

  // The main thread begins `place` and will begin something else within `allowed_seconds`.
  void at(std::string place, double allowed_seconds);
  // The main thread waits for the other ranks in `place`; `false`: it goes on with what it was at.
  void waiting(bool waits, const std::string& place = "");

  // Throws PeerFailure when a rank has failed.
  void check() const;
  // Called once, on the watch's thread, when a rank has failed (to abort what the main thread waits for).
  void on_fault(std::function<void()> wake);

  // Called on the watch's thread with every beat: what it returns, when not empty, is this rank's failure.
  void probe(std::function<std::string()> find_trouble);

  // This rank has failed with this error: the others are told. The line to print: empty when rank 0 prints
  // it.
  std::string last_words(const std::exception& error);

  struct State;

 private:
  std::unique_ptr<State> state_;
};

}  // namespace switchback
