#include "optim/spikes.h"

#include <algorithm>
#include <cmath>

#include "runtime/check.h"

namespace switchback {

SpikeDetector::SpikeDetector(const SpikeRules& rules) : rules_(rules) {
  CHECK(rules_.window >= 2, "the window of the running loss needs two losses or more, got ", rules_.window);
}

// Two passes over the window: 128 additions a step are nothing, and a running sum of squares would cancel.
bool SpikeDetector::deviates(double loss) const {
  if (!std::isfinite(loss)) return true;
  const auto n = static_cast<double>(recent_losses_.size());
  if (n < static_cast<double>(rules_.window))
    return false;  // also after a resume: nothing to compare with yet
  double mean = 0, variance = 0;
  for (double recent : recent_losses_) mean += recent / n;
  for (double recent : recent_losses_) variance += (recent - mean) * (recent - mean) / n;
  return loss > mean + rules_.loss_deviations * std::sqrt(variance);
}

int64_t SpikeDetector::join(Deviations& open, int64_t step) const {
  const bool same_event = open.count > 0 && step - open.latest < rules_.merge_within;
  if (!same_event) open = {step, step, 0};
  open.latest = step;
  return ++open.count;
}

std::optional<int64_t> SpikeDetector::explanation(int64_t loss_event) const {
  for (auto event = rms_events_.rbegin(); event != rms_events_.rend(); ++event) {
    const int64_t distance = loss_event - *event;
    if (distance > rules_.follow_last) break;
    if (distance >= rules_.follow_first) return *event;
  }
  return std::nullopt;
}

SpikeDetector::Notice SpikeDetector::add(const SpikeSample& sample) {
  CHECK(!last_step_ || sample.step > *last_step_, "spikes: step ", sample.step, " after step ", *last_step_);
  last_step_ = sample.step;
  Notice notice;
  if (sample.step >= rules_.first_step) {
    considered_.push_back(sample.step);
    if (sample.rms >= rules_.rms_threshold && join(open_rms_, sample.step) == 1) {
      rms_events_.push_back(sample.step);
      notice.rms_event = sample.step;
    }
    if (deviates(sample.loss) && join(open_loss_, sample.step) == rules_.loss_minimum) {
      loss_events_.push_back(open_loss_.first);
      notice.loss_event = open_loss_.first;
      notice.explained_by = explanation(open_loss_.first);
    }
  }
  if (std::isfinite(sample.loss)) {
    recent_losses_.push_back(sample.loss);
    if (static_cast<int64_t>(recent_losses_.size()) > rules_.window) recent_losses_.pop_front();
  }
  return notice;
}

SpikeSummary SpikeDetector::summary() const {
  SpikeSummary summary;
  summary.rms_events = rms_events_;
  summary.loss_events = loss_events_;
  for (int64_t event : loss_events_)
    if (explanation(event)) summary.explained.push_back(event);
  summary.steps_considered = static_cast<int64_t>(considered_.size());

  int64_t covered = 0, counted_to = 0;  // steps of windows that overlap are counted once
  for (int64_t event : rms_events_) {
    const auto from =
        std::ranges::lower_bound(considered_, event + rules_.follow_first) - considered_.begin();
    const auto to = std::ranges::upper_bound(considered_, event + rules_.follow_last) - considered_.begin();
    covered += std::max<int64_t>(0, to - std::max<int64_t>(from, counted_to));
    counted_to = std::max<int64_t>(counted_to, to);
  }
  if (summary.steps_considered > 0)
    summary.chance = static_cast<double>(covered) / static_cast<double>(summary.steps_considered);
  return summary;
}

SpikeSummary find_spikes(std::span<const SpikeSample> samples, const SpikeRules& rules) {
  SpikeDetector detector(rules);
  for (const SpikeSample& sample : samples) detector.add(sample);
  return detector.summary();
}

}  // namespace switchback
