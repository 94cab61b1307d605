// The schedules against their closed formulas, at the edges above all.
#include <cmath>
#include <initializer_list>
#include <numbers>
#include <string>

#include "optim/schedule.h"
#include "runtime/check.h"

#undef CHECK  // from here on it is doctest's
#include <doctest/doctest.h>

using namespace switchback;

namespace {

std::string message_of(const Schedule& schedule) {
  try {
    schedule.check();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("warm-up climbs from lr/W at step 0 to lr at step W-1") {
  for (ScheduleKind kind : {ScheduleKind::cosine, ScheduleKind::constant, ScheduleKind::constant_cooldown}) {
    const Schedule schedule{.kind = kind, .learning_rate = 2e-3, .warmup_steps = 8, .total_steps = 100,
                            .cooldown_steps = 10};
    CHECK(schedule.rate(0) == doctest::Approx(2e-3 / 8).epsilon(1e-14));
    CHECK(schedule.rate(3) == doctest::Approx(1e-3).epsilon(1e-14));
    CHECK(schedule.rate(7) == doctest::Approx(2e-3).epsilon(1e-14));
    CHECK(schedule.rate(8) == doctest::Approx(2e-3).epsilon(1e-14));
  }
}

TEST_CASE("cosine: half way is lr/2, the last step is just above 0, later steps stay at 0") {
  const Schedule schedule{.learning_rate = 1e-3, .warmup_steps = 10, .total_steps = 110};
  for (int64_t step : {10, 11, 35, 60, 85, 109})
    CHECK(schedule.rate(step) ==
          doctest::Approx(0.5e-3 * (1 + std::cos(std::numbers::pi * (step - 10) / 100.0))).epsilon(1e-14));
  CHECK(schedule.rate(10) == 1e-3);
  CHECK(schedule.rate(60) == doctest::Approx(0.5e-3).epsilon(1e-12));
  CHECK(schedule.rate(109) > 0);
  CHECK(schedule.rate(109) < 1e-6);
  CHECK(std::abs(schedule.rate(110)) < 1e-18);
  CHECK(std::abs(schedule.rate(150)) < 1e-18);
}

TEST_CASE("no warm-up at all, and warm-up that fills the whole run") {
  CHECK(Schedule{.learning_rate = 3, .warmup_steps = 0, .total_steps = 5}.rate(0) == 3);
  const Schedule all_warmup{.learning_rate = 3, .warmup_steps = 5, .total_steps = 5};
  CHECK(all_warmup.rate(4) == 3);
  CHECK(std::abs(all_warmup.rate(5)) < 1e-15);
}

TEST_CASE("constant and skip") {
  const Schedule constant{.kind = ScheduleKind::constant, .learning_rate = 0.5, .warmup_steps = 4};
  CHECK(constant.rate(0) == 0.125);
  CHECK(constant.rate(1'000'000) == 0.5);
  const Schedule skip{.kind = ScheduleKind::skip, .learning_rate = 0.5, .warmup_steps = 4, .total_steps = 10};
  CHECK(skip.rate(0) == 0.5);
  CHECK(skip.rate(9) == 0.5);
}

TEST_CASE("constant with cool-down: straight or curved, down to its end value") {
  Schedule schedule{.kind = ScheduleKind::constant_cooldown, .learning_rate = 1.0, .warmup_steps = 2,
                    .total_steps = 20, .cooldown_steps = 10, .cooldown_end = 0.2};
  CHECK(schedule.rate(9) == 1.0);
  CHECK(schedule.rate(10) == doctest::Approx(1.0).epsilon(1e-14));
  CHECK(schedule.rate(15) == doctest::Approx(0.6).epsilon(1e-14));
  CHECK(schedule.rate(19) == doctest::Approx(0.28).epsilon(1e-14));
  CHECK(schedule.rate(20) == doctest::Approx(0.2).epsilon(1e-14));
  CHECK(schedule.rate(25) == doctest::Approx(0.2).epsilon(1e-14));
  schedule.cooldown_power = 2;
  CHECK(schedule.rate(15) == doctest::Approx(0.4).epsilon(1e-14));
  CHECK(schedule.rate(19) == doctest::Approx(0.208).epsilon(1e-14));
}

TEST_CASE("names of --lr-scheduler, and numbers that do not fit together") {
  CHECK(schedule_kind("cosine") == ScheduleKind::cosine);
  CHECK(schedule_kind("const") == ScheduleKind::constant);
  CHECK(schedule_kind("const-cooldown") == ScheduleKind::constant_cooldown);
  CHECK_THROWS_WITH_AS(schedule_kind("linear"),
                       "--lr-scheduler linear is not known: use cosine, const or const-cooldown", Error);

  Schedule schedule{.total_steps = 20};
  CHECK(message_of(schedule).empty());
  schedule.kind = ScheduleKind::constant_cooldown;
  CHECK(message_of(schedule).find("--epochs-cooldown") != std::string::npos);
  schedule.cooldown_steps = 30;
  CHECK(message_of(schedule).find("30 steps does not fit into 20") != std::string::npos);
  schedule.learning_rate = NAN;
  CHECK(message_of(schedule).find("--lr is nan") != std::string::npos);
}

TEST_CASE("β2 schedule: 0 at the first step, the values of the paper at step 20000") {
  for (double lambda : {0.45, 0.5, 0.65, 0.8}) CHECK(scheduled_beta2(1, lambda) == 0);
  CHECK(scheduled_beta2(4, 0.5) == doctest::Approx(0.5).epsilon(1e-14));
  CHECK(scheduled_beta2(20000, 0.45) == doctest::Approx(0.9884).epsilon(1e-4));
  CHECK(scheduled_beta2(20000, 0.5) == doctest::Approx(0.9929).epsilon(1e-4));
  CHECK(scheduled_beta2(20000, 0.65) == doctest::Approx(0.9984).epsilon(1e-4));
  CHECK(scheduled_beta2(20000, 0.8) == doctest::Approx(0.9996).epsilon(1e-4));
}

TEST_CASE("debiased β: the weights it gives to past gradients are Adam's, and sum to one") {
  const double beta = 0.98;
  CHECK(debiased_beta(1, beta) == 0);
  CHECK(debiased_beta(1, 0) == 0);
  CHECK(debiased_beta(7, 0) == 0);
  CHECK(debiased_beta(100000, beta) == doctest::Approx(beta).epsilon(1e-14));
  // Weight of gradient i after t steps: classic (1-β) β^(t-i) / (1-β^t).
  const int t = 30;
  double sum = 0;
  for (int i = 1; i <= t; ++i) {
    double weight = 1 - debiased_beta(i, beta);
    for (int later = i + 1; later <= t; ++later) weight *= debiased_beta(later, beta);
    CHECK(weight ==
          doctest::Approx((1 - beta) * std::pow(beta, t - i) / (1 - std::pow(beta, t))).epsilon(1e-12));
    sum += weight;
  }
  CHECK(sum == doctest::Approx(1).epsilon(1e-12));
}
