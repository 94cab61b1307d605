// adamw.h: AdamW over all parameters at once. With update clipping it is StableAdamW (stable_adamw.h).
//
// Per tensor θ with gradient g, step t = 1, 2, ... (paper section 6.1; α_t is the learning rate, λ the weight
// decay):
//   β̂ = β (1 - β^(t-1))/(1 - β^t)          Adam's bias correction, folded into the decay rates
//   first  = β̂1 first + (1 - β̂1) g         the momentum
//   second = β̂2 second + (1 - β̂2) g²
//   rms    = sqrt(mean(g²/max(second, ε²))) about 1 in calm times; large when `second` has fallen behind
//   θ      = θ (1 - α_t λ) - η_t first/(sqrt(second) + ε),   η_t = α_t, or α_t/max(1, rms) for StableAdamW
// g is the arena's gradient times gradient_scale, clipped to a global norm where that is asked for. A tensor
// whose gradient holds an Inf or a NaN is left alone for this step, weight decay included; t counts the step
// all the same.
//
// The arithmetic is in kernels (gradient_statistics, adam_step, adam_moments, adam_update); this class owns
// the state and computes the scalars of a step. One step is three parts, so that the middle one can be
// captured and replayed, and the last one may come late:
//   begin_step(rate)          on the host: t, β̂1, β̂2, written to the device
//   update()                  kernel calls only, with the same addresses every time
//   receive(step, numbers)    makes the report of what numbers() held after that step, wherever they were
//                             kept
// step() does all three and waits for the device.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/kernels.h"
#include "optim/groups.h"
#include "runtime/tensor.h"

namespace switchback {

class Communicator;
class ParameterArena;
struct ParameterRange;

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.98;
  double beta2_lambda = 0;    // above 0: β̂2 = 1 - t^-λ, and beta2 is not used (paper section 6.2)
  double weight_decay = 0.2;  // of the tensors that `decays` names (groups.h)
  DecayRule decay_rule = DecayRule::head;
  std::vector<std::string> undecayed;  // more globs of names without decay (--wd-exclude)
  double gradient_scale = 1;  // 1/loss scale, when the loss was multiplied by one (paper section 8: 1/65536)
  AdamOptions update;         // ε, update clipping, which rate decays the weights, global gradient clipping
};

// What a step did, for the log.
struct OptimizerReport {
  int64_t step = 0;  // t; 0: no step has finished yet
  // L2 norms of the gradient after scaling and before clipping, without the skipped tensors.
  double gradient_norm = 0;
  double visual_gradient_norm = 0;  // of the tensors named visual.*
  double text_gradient_norm = 0;    // of all others, logit_scale among them
  std::vector<double> rms;          // (S) in the arena's order; negative: skipped
  double largest_rms = 0;
  std::string largest_rms_name;      // empty when every tensor was skipped
  std::vector<std::string> skipped;  // names of the tensors with an Inf or a NaN in their gradient
};

// ZeRO-1: this rank updates elements [from, from + count) of the arena's flat buffers and keeps moments for
// these alone; the other ranks have the others, as many each. Sums of squares and RMS are added up over
// ranks, also of tensors that lie in several shards, so a step does what it does on one rank. Gradients must
// be reduced within the shard (data_parallel.h), and new values are shared after update().
struct OptimizerShard {
  Communicator* ranks = nullptr;  // null: one rank has it all
  int64_t from = 0, count = 0;
};

class AdamW {
 public:
  // Sets the weight decay of the arena's tensors (0 for frozen ones), so it comes before the first use of
  // arena.table(). Error when a number is out of range, or a glob of `undecayed` matches no parameter.
  AdamW(ParameterArena& arena, AdamWOptions options, OptimizerShard shard = {});
  AdamW(const AdamW&) = delete;

  // Updates masters and values from the arena's gradients.
  void step(double learning_rate);
  void begin_step(double learning_rate);
  void take_back_step();  // the one that was begun did not happen
  void update();
  // The same in pieces: ranges of whole tensors (ParameterArena::range) in any order, all of them, and then
  // finish_update(). Same bits, for the update of a tensor asks for nothing of other tensors; unless a global
  // norm clips, or the optimizer has a shard: not possible then.
  void update(const ParameterRange& range);
  void finish_update();
  // Of the last update, on the device: (2, S) of the masters' type, sums of squares of the gradients and RMS.
  const Tensor& numbers() const { return numbers_; }
  void receive(int64_t step, const Tensor& numbers);  // on the host

  // Of the last step that was received; with TrainingStep that may be the one before the last.
  const OptimizerReport& report() const { return report_; }
  double rms_of(std::string_view name) const;  // of report(); negative when skipped or before the first step

  // Everything a checkpoint needs, by name and without the arena's padding or order:
  //   optimizer.first.<parameter>, optimizer.second.<parameter>   the moments, of the parameter's shape, on
  //                                                               the device
  //   optimizer.step                                              () i64 on the host: steps done
  // The tensors share the optimizer's memory. With a shard they are copies in host memory, gathered by all
  // ranks together (everybody calls it), at_once numbers on the device at a time; a rank that does not want
  // them takes part and gets none.
  using State = std::vector<std::pair<std::string, Tensor>>;
  State state(bool wanted = true, int64_t at_once = int64_t{1} << 24) const;
  // The same tensors in host memory, with nothing in them yet; restore() brings what was written into them to
  // the optimizer, each rank its own part.
  State state_to_fill() const;
  void restore(const State& state);
  bool state_is_copied() const { return shard_.ranks != nullptr; }
  int64_t steps_done() const { return steps_.span<int64_t>()[0]; }
  // update() waits for the device (a sharded tensor's RMS goes through the host): it cannot be recorded.
  bool update_waits() const { return shards_cut_tensors_; }

  const AdamWOptions& options() const { return options_; }

 private:
  // What one update works on: everything, a shard or a range
  struct Flat {
    Tensor masters, values, gradients, first, second;  // (elements)
    Tensor sum_squares, rms, largest;                  // (segments)
    Segments table;
  };
  void update(const Flat& flat);
  Segments shard_table() const;
  State by_name(const Tensor& first, const Tensor& second, const Tensor& steps) const;
  void share_rms();

  ParameterArena& arena_;
  AdamWOptions options_;
  OptimizerShard shard_;
  Tensor shard_ranges_;  // (S, 2) i64: what of each tensor lies in the shard; undefined without one
  std::vector<int64_t> shard_counts_;  // (S) elements of it
  bool shards_cut_tensors_ = false;
  Tensor first_, second_;     // flat as the arena's masters (the shard's part), of their type
  Tensor numbers_;            // (2, S) of the masters' type
  Tensor sum_squares_, rms_;  // (S): the rows of numbers_
  Tensor scalars_;            // (step_scalar_count) f64, on the device
  Tensor steps_;              // () i64, on the host
  OptimizerReport report_;
};

}  // namespace switchback
