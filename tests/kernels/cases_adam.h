// cases_adam.h: the optimizer's three passes over an arena of tensors of these sizes, with gaps of padding
// between.
#pragma once

#include "tests/kernels/op_case.h"

namespace switchback {

inline constexpr int64_t adam_padding = 5;

struct Arena {
  std::vector<int64_t> sizes;
  AdamOptions options;
  double gradient_scale = 0.5;
  int64_t padding = adam_padding;  // elements between tensors

  int64_t count() const { return static_cast<int64_t>(sizes.size()); }
  int64_t from(int64_t s) const {
    int64_t at = 0;
    for (int64_t i = 0; i < s; ++i) at += sizes[i] + padding;
    return at;
  }
  int64_t elements() const { return from(count()); }
};

// Segment 1 is frozen; weight decay 0.1 and 0.2 in turns; gradient of segment 2 holds an Inf when asked for.
inline std::vector<Operand> arena_operands(const Arena& a, bool with_infinity) {
  Array ranges, decay, rate;
  for (int64_t s = 0; s < a.count(); ++s) {
    ranges.push_back(static_cast<double>(a.from(s)));
    ranges.push_back(static_cast<double>(a.sizes[s]));
    decay.push_back(s % 2 ? 0.2 : 0.1);
    rate.push_back(s == 1 ? 0 : s == 0 ? 0.5 : 1);
  }
  Operand gradients = random("gradients", {a.elements()}, 0.1);
  if (with_infinity) gradients.values[a.from(2) + a.sizes[2] / 2] = INFINITY;
  return {gradients, given("ranges", {a.count(), 2}, ranges, Operand::i64),
          given("weight_decay", {a.count()}, decay, Operand::f64),
          given("rate_scale", {a.count()}, rate, Operand::f64),
          given("scalars", {step_scalar_count}, {0.01, 0.8, 0.95, a.gradient_scale}, Operand::f64)};
}
inline Segments segments_of(const Bound& x) { return {x("ranges"), x("weight_decay"), x("rate_scale")}; }

inline Array sums_of_squares(const Array& gradients, const Arena& a) {
  Array sums(a.count());
  if (gradients.empty()) return sums;  // too large to be drawn, only timed
  for (int64_t s = 0; s < a.count(); ++s)
    for (int64_t i = a.from(s); i < a.from(s) + a.sizes[s]; ++i) sums[s] += gradients[i] * gradients[i];
  return sums;
}

inline OpCase gradient_statistics_case(const Arena& a) {
  std::vector<Operand> operands = arena_operands(a, false);
  operands.push_back(output("sum_squares", {a.count()}, Operand::statistics));
  return {
      .name = concat("gradient_statistics ", a.elements()),
      .operands = operands,
      .call =
          [](const Bound& x) { x.k.gradient_statistics(x("sum_squares"), x("gradients"), segments_of(x)); },
      .define = [=](Arrays& x) { x["sum_squares"] = sums_of_squares(x["gradients"], a); },
      .tolerance_bf16 = 3e-6,
  };
}

inline OpCase adam_moments_case(const Arena& a, bool with_infinity) {
  std::vector<Operand> operands = arena_operands(a, with_infinity);
  operands.push_back(
      given("sum_squares", {a.count()}, sums_of_squares(operands[0].values, a), Operand::statistics));
  operands.push_back(random("first", {a.elements()}, 0.1, 0, Operand::statistics, Operand::in_out));
  operands.push_back(random("second", {a.elements()}, 0.005, 0.005, Operand::statistics, Operand::in_out));
  operands.push_back(output("rms", {a.count()}, Operand::statistics));
  return {
      .name = concat("adam_moments ", a.elements(), a.options.max_gradient_norm > 0 ? " clipped" : "",
                     with_infinity ? " with Inf" : ""),
      .operands = operands,
      .call =
          [=](const Bound& x) {
            x.k.adam_moments(x("first"), x("second"), x("rms"), x("gradients"), x("sum_squares"),
                             segments_of(x), x("scalars"), a.options);
          },
      .define =
          [=](Arrays& x) {
            const auto skipped = [&](int64_t s) { return !std::isfinite(x["sum_squares"][s]); };
            double total = 0;
            for (int64_t s = 0; s < a.count(); ++s)
              if (x["rate_scale"][s] != 0 && !skipped(s)) total += x["sum_squares"][s];
            double scale = x["scalars"][3];
            if (a.options.max_gradient_norm > 0)
              scale *= std::min(1.0, a.options.max_gradient_norm / (scale * std::sqrt(total) + 1e-6));
            for (int64_t s = 0; s < a.count(); ++s) {
              if (x["rate_scale"][s] == 0) continue;  // rms 0
              if (skipped(s)) {
                x["rms"][s] = -1;
                continue;
              }
              double sum = 0;
              for (int64_t i = a.from(s); i < a.from(s) + a.sizes[s]; ++i) {
                const double g = x["gradients"][i] * scale;
                x["first"][i] = 0.8 * x["first"][i] + (1 - 0.8) * g;
                x["second"][i] = 0.95 * x["second"][i] + (1 - 0.95) * g * g;
                sum += g * g / std::max(x["second"][i], a.options.epsilon * a.options.epsilon);
              }
              x["rms"][s] = std::sqrt(sum / static_cast<double>(a.sizes[s]));
            }
          },
      .tolerance_bf16 = 3e-6,  // moments and rms are in R
  };
}

inline OpCase adam_update_case(const Arena& a) {
  std::vector<Operand> operands = arena_operands(a, false);
  operands.erase(operands.begin());
  Array rms(a.count(), 1.7);
  rms[0] = 0.4;
  if (a.count() > 2) rms[2] = -1;  // skipped
  operands.push_back(given("rms", {a.count()}, rms, Operand::statistics));
  operands.push_back(random("masters", {a.elements()}, 1, 0, Operand::statistics, Operand::in_out));
  operands.push_back(random("values", {a.elements()}, 1, 0, Operand::value, Operand::in_out));
  operands.push_back(random("first", {a.elements()}, 0.1, 0, Operand::statistics));
  operands.push_back(random("second", {a.elements()}, 0.005, 0.005, Operand::statistics));
  return {
      .name = concat("adam_update ", a.elements(), a.options.clip_update ? " stable" : "",
                     a.options.decay_clipped_rate ? " decay clipped" : ""),
      .operands = operands,
      .call =
          [=](const Bound& x) {
            x.k.adam_update(x("masters"), x("values"), x("first"), x("second"), x("rms"), segments_of(x),
                            x("scalars"), a.options);
          },
      .define =
          [=](Arrays& x) {
            for (int64_t s = 0; s < a.count(); ++s) {
              if (x["rms"][s] < 0 || x["rate_scale"][s] == 0) continue;
              const double full = x["scalars"][0] * x["rate_scale"][s];
              const double clipped =
                  a.options.clip_update ? full / std::max(1.0, x["rms"][s] / a.options.clip_threshold) : full;
              const double decay = (a.options.decay_clipped_rate ? clipped : full) * x["weight_decay"][s];
              for (int64_t i = a.from(s); i < a.from(s) + a.sizes[s]; ++i) {
                double& theta = x["masters"][i];
                theta = theta * (1 - decay) -
                        clipped * x["first"][i] / (std::sqrt(x["second"][i]) + a.options.epsilon);
                x["values"][i] = theta;
              }
            }
          },
  };
}

// Both in one pass, for options without update clipping.
inline OpCase adam_step_case(const Arena& a, bool with_infinity) {
  const OpCase moments = adam_moments_case(a, with_infinity), update = adam_update_case(a);
  std::vector<Operand> operands = moments.operands;
  for (const Operand& o : update.operands)
    if (o.name == "masters" || o.name == "values") operands.push_back(o);
  return {
      .name = concat("adam_step ", a.elements(), with_infinity ? " with Inf" : ""),
      .operands = operands,
      .call =
          [=](const Bound& x) {
            x.k.adam_step(x("masters"), x("values"), x("first"), x("second"), x("rms"), x("gradients"),
                          x("sum_squares"), segments_of(x), x("scalars"), a.options);
          },
      .define =
          [=](Arrays& x) {
            moments.define(x);
            update.define(x);
          },
  };
}

}  // namespace switchback
