// schedule.h: the learning rate of every step, and AdaFactor's schedule of β2.
//
// Steps count from 0; the rate of step t is set before the step. With W warm-up steps, T steps in all and Tc
// cool-down steps (open_clip's formulas):
//   t < W              lr (t+1)/W                                        so step 0 already moves, by lr/W
//   cosine             lr (1 + cos(π (t-W)/(T-W)))/2                     to 0, without a floor
//   constant           lr
//   constant_cooldown  lr until T-Tc, then (1 - (t-(T-Tc))/Tc)^power (lr - end) + end
//   skip               lr always, no warm-up either (open_clip's --skip-scheduler)
#pragma once

#include <cstdint>
#include <string_view>

namespace switchback {

enum class ScheduleKind : uint8_t { cosine, constant, constant_cooldown, skip };

struct Schedule {
  ScheduleKind kind = ScheduleKind::cosine;
  double learning_rate = 5e-4;  // the highest rate
  int64_t warmup_steps = 0;     // W
  int64_t total_steps = 0;      // T; not read by constant and skip
  int64_t cooldown_steps = 0;   // Tc, constant_cooldown only
  double cooldown_end = 0;      // the rate that the cool-down would reach at step T
  double cooldown_power = 1;    // 1: a straight line

  // α_t of step t ≥ 0. At and after step T the schedule stays at its end value.
  double rate(int64_t step) const;
  // Error, naming the flag, when the numbers do not fit together.
  void check() const;
};

// "cosine", "const", "const-cooldown": the values of --lr-scheduler. Error on any other name.
ScheduleKind schedule_kind(std::string_view name);

// β̂2 = 1 - t^-λ, t counted from 1 (paper section 6.2): 0 at the first step, and a memory of about t^λ steps
// later.
double scheduled_beta2(int64_t t, double lambda);

// Adam's bias correction folded into the decay rate (paper section 6.1, step 2), t counted from 1:
// β̂ = β (1 - β^(t-1))/(1 - β^t), 0 at the first step and → β.
double debiased_beta(int64_t t, double beta);

}  // namespace switchback
