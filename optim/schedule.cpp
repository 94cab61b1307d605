#include "optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "runtime/check.h"

namespace switchback {

double Schedule::rate(int64_t step) const {
  CHECK(step >= 0, "steps count from 0, got ", step);
  if (kind == ScheduleKind::skip) return learning_rate;
  if (step < warmup_steps)
    return learning_rate * static_cast<double>(step + 1) / static_cast<double>(warmup_steps);
  if (kind == ScheduleKind::constant) return learning_rate;

  const int64_t length = kind == ScheduleKind::cosine ? total_steps - warmup_steps : cooldown_steps;
  const int64_t elapsed = step - (total_steps - length);
  if (elapsed < 0) return learning_rate;  // before the cool-down
  // A step past the end (the last steps of a run that was prolonged) stays at the end; the cosine would rise
  // again.
  const double part =
      length > 0 ? std::min(1.0, static_cast<double>(elapsed) / static_cast<double>(length)) : 1.0;
  if (kind == ScheduleKind::cosine) return 0.5 * (1 + std::cos(std::numbers::pi * part)) * learning_rate;
  return std::pow(1 - part, cooldown_power) * (learning_rate - cooldown_end) + cooldown_end;
}

void Schedule::check() const {
  if (!(learning_rate >= 0) || !std::isfinite(learning_rate))
    fail("--lr is ", learning_rate, ": give a finite rate, 0 or more");
  if (kind == ScheduleKind::skip) return;
  if (warmup_steps < 0) fail("--warmup is ", warmup_steps, ": give a number of steps, 0 or more");
  if (kind == ScheduleKind::constant) return;
  if (total_steps <= 0)
    fail("a schedule over ", total_steps, " steps: training has no step (check --epochs)");
  if (kind != ScheduleKind::constant_cooldown) return;
  if (cooldown_steps <= 0)
    fail("--lr-scheduler const-cooldown needs --epochs-cooldown, and a cool-down of at least one step, got ",
         cooldown_steps);
  if (cooldown_steps > total_steps)
    fail("a cool-down of ", cooldown_steps, " steps does not fit into ", total_steps,
         " steps: give an --epochs-cooldown of at most --epochs");
  if (!(cooldown_power > 0)) fail("--lr-cooldown-power is ", cooldown_power, ": give a power above 0");
  if (!(cooldown_end >= 0)) fail("--lr-cooldown-end is ", cooldown_end, ": give a rate, 0 or more");
}

ScheduleKind schedule_kind(std::string_view name) {
  if (name == "cosine") return ScheduleKind::cosine;
  if (name == "const") return ScheduleKind::constant;
  if (name == "const-cooldown") return ScheduleKind::constant_cooldown;
  fail("--lr-scheduler ", name, " is not known: use cosine, const or const-cooldown");
}

double scheduled_beta2(int64_t t, double lambda) {
  CHECK(t >= 1, "optimizer steps count from 1, got ", t);
  return 1 - std::pow(static_cast<double>(t), -lambda);
}

double debiased_beta(int64_t t, double beta) {
  CHECK(t >= 1, "optimizer steps count from 1, got ", t);
  return beta * (1 - std::pow(beta, t - 1)) / (1 - std::pow(beta, t));
}

}  // namespace switchback
