// Spikes planted into a synthetic run are found where they were planted, and nowhere else.
#include <cmath>
#include <vector>

#include "optim/spikes.h"
#include "runtime/check.h"

#undef CHECK  // from here on it is doctest's
#include <doctest/doctest.h>

using namespace switchback;

namespace {

using Steps = std::vector<int64_t>;

// A falling loss with noise of standard deviation about 0.007, far from a deviation, and RMS near 1.
std::vector<SpikeSample> calm_run(int64_t steps) {
  std::vector<SpikeSample> run;
  for (int64_t step = 0; step < steps; ++step) {
    const auto x = static_cast<double>(step);
    run.push_back({step, 4.0 - 1e-5 * x + 0.01 * std::sin(1.7 * x), 1.0 + 0.2 * std::sin(0.3 * x)});
  }
  return run;
}

void raise_loss(std::vector<SpikeSample>& run, int64_t from, int64_t count, double by) {
  for (int64_t step = from; step < from + count; ++step) run[static_cast<size_t>(step)].loss += by;
}

void set_rms(std::vector<SpikeSample>& run, int64_t step, double rms) {
  run[static_cast<size_t>(step)].rms = rms;
}

}  // namespace

TEST_CASE("a calm run has no events") {
  const SpikeSummary found = find_spikes(calm_run(3000));
  CHECK(found.rms_events.empty());
  CHECK(found.loss_events.empty());
  CHECK(found.steps_considered == 2000);
  CHECK(found.chance == 0);
}

TEST_CASE("events are found, dated at their first step, matched 1 to 8 steps later") {
  auto run = calm_run(6000);
  struct Planted { int64_t rms, loss; };
  for (auto [rms, loss] : {Planted{2000, 2001}, {3000, 3008}, {4000, 4009}, {4500, 4500}}) {
    set_rms(run, rms, 2.5);
    set_rms(run, rms + 2, 3.5);  // the same event
    raise_loss(run, loss, 6, 2.0);
  }
  set_rms(run, 5000, 2.31);  // an RMS spike that nothing follows
  set_rms(run, 5100, 2.29);  // not a spike
  raise_loss(run, 5500, 3, 2.0);  // a loss spike out of nothing
  const SpikeSummary found = find_spikes(run);
  CHECK(found.rms_events == Steps{2000, 3000, 4000, 4500, 5000});
  CHECK(found.loss_events == Steps{2001, 3008, 4009, 4500, 5500});
  CHECK(found.explained == Steps{2001, 3008});
  CHECK(found.steps_considered == 5000);
  CHECK(found.chance == doctest::Approx(5 * 8 / 5000.0).epsilon(1e-14));
}

TEST_CASE("the first thousand steps are ignored") {
  auto run = calm_run(2000);
  set_rms(run, 500, 9);
  raise_loss(run, 503, 5, 3);
  set_rms(run, 999, 9);
  set_rms(run, 1300, 9);
  const SpikeSummary found = find_spikes(run);
  CHECK(found.rms_events == Steps{1300});
  CHECK(found.loss_events.empty());
}

TEST_CASE("deviations less than ten steps apart are one event, ten apart are two") {
  auto run = calm_run(3000);
  for (int64_t step : {1500, 1509, 1518}) set_rms(run, step, 3);  // a chain
  for (int64_t step : {2000, 2010}) set_rms(run, step, 3);
  CHECK(find_spikes(run).rms_events == Steps{1500, 2000, 2010});
}

TEST_CASE("a lone deviation is no loss spike; two within ten steps are one") {
  auto run = calm_run(4000);
  raise_loss(run, 1500, 1, 2);
  raise_loss(run, 2000, 1, 2);
  raise_loss(run, 2010, 1, 2);  // ten steps on: also alone
  raise_loss(run, 3000, 1, 2);
  raise_loss(run, 3009, 1, 2);
  CHECK(find_spikes(run).loss_events == Steps{3000});
}

TEST_CASE("the threshold is 3.2 standard deviations of the 128 losses before") {
  // Losses of -1 and +1 in turn: mean 0, standard deviation exactly 1 over an even window.
  for (double height : {3.19, 3.21}) {
    std::vector<SpikeSample> run;
    for (int64_t step = 0; step < 1400; ++step) run.push_back({step, step % 2 ? 1.0 : -1.0, 1.0});
    run[1200].loss = height;
    SpikeRules rules;
    rules.loss_minimum = 1;
    CHECK(find_spikes(run, rules).loss_events == (height > 3.2 ? Steps{1200} : Steps{}));
  }
}

TEST_CASE("a loss that is not finite deviates and does not spoil the window") {
  auto run = calm_run(2500);
  run[1500].loss = NAN;
  run[1501].loss = INFINITY;
  raise_loss(run, 2000, 3, 2);
  CHECK(find_spikes(run).loss_events == Steps{1500, 2000});
}

TEST_CASE("chance counts steps that follow two RMS events once, and only steps that exist") {
  auto run = calm_run(1100);
  set_rms(run, 1050, 3);
  set_rms(run, 1054, 3);
  set_rms(run, 1097, 3);  // only steps 1098 and 1099 come after it
  SpikeRules rules;
  rules.merge_within = 1;  // so that windows can overlap: 1051-1058 and 1055-1062 are 12 steps
  CHECK(find_spikes(run, rules).chance == doctest::Approx((12 + 2) / 100.0).epsilon(1e-14));
}

TEST_CASE("online: an RMS event is told at once, a loss event at its second deviation") {
  auto run = calm_run(2100);
  set_rms(run, 2000, 3);
  raise_loss(run, 2004, 6, 2);
  SpikeDetector detector;
  for (const SpikeSample& sample : run) {
    CAPTURE(sample.step);
    const SpikeDetector::Notice notice = detector.add(sample);
    CHECK(notice.rms_event.has_value() == (sample.step == 2000));
    CHECK(notice.loss_event.has_value() == (sample.step == 2005));
    if (notice.loss_event) {
      CHECK(*notice.loss_event == 2004);
      CHECK(notice.explained_by == 2000);
    }
  }
  CHECK(detector.summary().explained == Steps{2004});
  CHECK_THROWS_AS(detector.add({2000, 1, 1}), Error);
}

TEST_CASE("an unknown RMS (a skipped tensor) is no event; after a resume the window fills first") {
  auto run = calm_run(2000);
  set_rms(run, 1500, -1);
  const std::vector<SpikeSample> resumed(run.begin() + 1600, run.end());
  CHECK(find_spikes(run).rms_events.empty());
  auto disturbed = resumed;
  disturbed[100].loss += 2;  // only 100 losses known
  disturbed[101].loss += 2;
  CHECK(find_spikes(disturbed).loss_events.empty());
}
