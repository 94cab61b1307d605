// spikes.h: finds RMS spikes and loss spikes in a training run, and counts how often one follows the other.
//
// Why: the paper (section 3.4, appendix D) predicts a loss spike 1 to 8 steps after the second moment of the
// patch embedding has fallen behind its squared gradients, that is after RMS_t = sqrt(mean(g²/max(u, ε²)))
// leaves 1.
//
// Definitions (those the paper leaves open are ours and say so):
//   RMS deviation    RMS_t ≥ 2.3
//   loss deviation   loss_t > mean + 3.2 std of the losses of the 128 recorded steps before t. Ours: the
//                    window, that t itself is not in it, and that a loss that is not finite deviates (and
//                    stays out of it)
//   event            deviations of one kind, each less than 10 steps after the one before, are one event,
//                    dated at its first. A loss event counts only with two deviations or more; a lone one may
//                    be a bad batch
//   ignored          steps below 1000 (low learning rate): they fill the window and never deviate
//   explained        a loss event at step L with an RMS event at step R, 1 ≤ L - R ≤ 8
//   chance           (steps that lie 1 to 8 after an RMS event) / (steps considered): the probability that a
//                    loss event placed at random would be explained
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <vector>

namespace switchback {

struct SpikeRules {
  double rms_threshold = 2.3;
  double loss_deviations = 3.2;  // standard deviations above the running mean
  int64_t window = 128;          // losses in the running mean and standard deviation
  int64_t first_step = 1000;     // steps before this one are ignored
  int64_t merge_within = 10;     // deviations closer than this are one event
  int64_t loss_minimum = 2;      // deviations that make a loss event
  int64_t follow_first = 1;      // a loss event is explained by an RMS event this many steps earlier ...
  int64_t follow_last = 8;       // ... up to this many
};

struct SpikeSample {
  int64_t step = 0;
  double loss = 0;
  double rms = 0;  // of the watched tensor (the paper: visual.conv1.weight); negative: not known at this step
};

struct SpikeSummary {
  std::vector<int64_t> rms_events;      // steps, ascending
  std::vector<int64_t> loss_events;     // steps, ascending
  std::vector<int64_t> explained;       // those of loss_events that follow an RMS event
  int64_t steps_considered = 0;
  double chance = 0;                    // in [0, 1]; 0 when no step was considered
};

// Online: for the trainer's log.
class SpikeDetector {
 public:
  explicit SpikeDetector(const SpikeRules& rules = {});

  // What this sample brought to light; usually nothing.
  struct Notice {
    std::optional<int64_t> rms_event;   // the step of a new RMS event: this one
    std::optional<int64_t> loss_event;  // the step of a newly confirmed loss event: it began a few steps ago
    std::optional<int64_t> explained_by;  // the RMS event before it
  };
  // Steps ascend; gaps are allowed (a log that records every tenth step). Error when the step does not
  // ascend.
  Notice add(const SpikeSample& sample);

  SpikeSummary summary() const;
  const SpikeRules& rules() const { return rules_; }

 private:
  struct Deviations {  // of one kind, those of the event that may still grow
    int64_t first = 0, latest = 0, count = 0;
  };
  bool deviates(double loss) const;
  int64_t join(Deviations& open, int64_t step) const;  // returns the count after `step` has joined
  std::optional<int64_t> explanation(int64_t loss_event) const;

  SpikeRules rules_;
  std::deque<double> recent_losses_;
  Deviations open_rms_, open_loss_;
  std::vector<int64_t> rms_events_, loss_events_;
  std::vector<int64_t> considered_;  // the steps that could have held an event, ascending
  std::optional<int64_t> last_step_;
};

// Offline: the same definitions over a finished series, for the picture and the analysis.
SpikeSummary find_spikes(std::span<const SpikeSample> samples, const SpikeRules& rules = {});

}  // namespace switchback
