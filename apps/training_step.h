// training_step.h: one step (forward, backward, update) that the device never waits in.
//
//   TrainingStep step(clip, arena, optimizer, batch_size, options);
//   for (...) {
//     step.bring(images, tokens);              the next batch goes to the device beside the step that runs
//     step.launch(number, learning_rate);      queues the step and returns at once
//     if (auto done = step.collect()) ...      the numbers of the step before: one step late, without a wait
//   }
//   while (auto done = step.collect(true)) ...  before a checkpoint, an evaluation or the end: the rest
//
// On a GPU the first steps run op by op: they fill the caching allocator and plan the matrix products. Then
// the step is captured as a CUDA graph, once for each of the two buffers that batches alternate between, and
// from then on a step is three small uploads, one graph launch and two small downloads. What changes from
// step to step lies on the device: learning rate and decay rates (AdamW), the step number that patch dropout
// draws by. Same kernels, same addresses, same bits as op by op. On the CPU the same class works op by op,
// and collect() is one step late there, too, so that the loop around it is tested without a GPU.
//
// Over several ranks the loss is that of all ranks' batches, the gradients are added up beside the backward
// pass or behind it (nn/data_parallel.h), and the recording holds all of it. With the loss every rank learns
// whether any rank was asked to stop, so that all of them stop after the same step.
//
// The text stops behind the longest caption of the batch (models/text_length.h). There are at most ten
// lengths; each is captured by itself when it comes for the third time, and the graphs share the allocator's
// memory: whoever rehearses, which is done on the whole text, has the room for all of them. All ranks compute
// the longest of their lengths, because a captured step and its collectives must be the same on all of them;
// the slowest rank decides how long a step takes anyhow.
//
// A step goes op by op, too, when somebody watches the ops (Tape::observe), and when the batch is smaller
// than the others. Accumulation (parts > 1): each part's activations are given up and computed again in the
// backward pass (checkpoint); the loss sees all features.
#pragma once

#include <array>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "kernels/kernels.h"
#include "models/clip.h"
#include "nn/data_parallel.h"
#include "optim/adamw.h"

namespace switchback {

// What a step did.
struct StepNumbers {
  int64_t step = 0;
  double loss = 0;
  double logit_scale = 0;  // exp'd, of this loss: before the update
  bool stop = false;       // some rank was asked to stop when it launched this step
  OptimizerReport optimizer;
  double work_seconds = 0;  // on the device
  double idle_seconds = 0;  // how long the device had nothing to do before it; 0 for the first step
};

class TrainingStep {
 public:
  struct Options {
    Clip::Options clip;                            // without dropout: that follows from the model
    uint64_t seed = 0;                             // of patch dropout
    int64_t parts = 1;                             // --accum-freq
    bool eager = false;                            // never capture
    std::function<void(const std::string&)> warn;  // a step that cannot be captured, a batch of another size
    Communicator* ranks = nullptr;                 // null: one rank
    Communicator* host = nullptr;                  // the same ranks, for host memory
    DataParallel::Options parallel{};              // sharded: the optimizer has a shard, too
  };

  // batch_size: rows of all parts together. The arena is allocated and may be changed between steps. Where
  // its gradients share memory, blocks are updated within the backward pass (optim/update_in_backward.h).
  TrainingStep(const Clip& clip, ParameterArena& arena, AdamW& optimizer, int64_t batch_size,
               Options options);
  ~TrainingStep();
  TrainingStep(const TrainingStep&) = delete;

  // images (B, S, S, 3) u8, tokens (B, T) i32, host tensors, page-locked if nobody is to wait; they are kept
  // until they are uploaded. B may be smaller than batch_size: such a step is not captured.
  void bring(const Tensor& images, const Tensor& tokens);
  // How much of that batch's text is computed (B, 1 ... T)
  int64_t text_length() const { return inputs_[current_].length; }
  // Queues the step on the batch that was brought last. At most two steps may be uncollected.
  // stop: this rank was asked to stop; all ranks read it in this step's numbers.
  void launch(int64_t step, double learning_rate, bool stop = false);
  // The numbers of the oldest uncollected step, once a later one is launched, or with `newest` at once
  // (waits). optimizer.report() is that step's, too.
  std::optional<StepNumbers> collect(bool newest = false);

  // Forward and backward once on a blank batch, without an update: makes the plans of all products and fills
  // the allocator, so that what does not fit fails here. The gradients are rubbish until the next step.
  void rehearse();
  // The forward pass of the step that was collected last, once more and op by op, to look for a NaN: possible
  // until another batch is brought.
  void repeat_forward(int64_t step);

  // Of a sharded optimizer: all masters on every rank, for a checkpoint.
  void share_masters() { parallel_.share_masters(); }

  bool captured() const;  // the last launch replayed a recording
  // For the log: how gradients travel, and how fast the links are.
  std::string about_ranks() const;
  bool overlaps() const { return parallel_.overlaps(); }

 private:
  struct Input {
    Tensor images;       // on the device, (batch_size, S, S, 3)
    Tensor tokens;       // on the device, (batch_size T): the batch's (size, length) come first
    int64_t size = 0;    // rows of the batch in it
    int64_t length = 0;  // columns of its text
    std::unique_ptr<Moment> arrived;
    Tensor host_images, host_tokens;  // kept until then
    Tensor columns;                   // page-locked, (batch_size T): of a text that stops early
    std::shared_ptr<Moment> used;     // the end of the last step that reads it
    std::map<int64_t, std::unique_ptr<Recording>> recordings;  // by length
    int64_t last_step = -1;

    Tensor batch_images() const { return images.slice(0, size); }
    Tensor batch_tokens() const { return tokens.part(0, {size, length}); }
  };
  struct Captures {       // of one length
    int whole_steps = 0;  // that ran op by op
    int failures = 0;     // to capture
  };
  struct Flight {                  // a step that was launched
    int64_t step = 0, update = 0;  // the optimizer counts its updates from 1
    size_t slot = 0;               // of the ring
    std::unique_ptr<Moment> begin;
    std::shared_ptr<Moment> before, end;  // end of the step before; absent for the first
  };
  struct Slot {  // page-locked
    Tensor results, numbers;
  };

  int64_t agreed_length(const Tensor& tokens) const;
  Variable forward(const Tensor& images, const Tensor& tokens) const;
  void run(const Input& input);
  void run_or_replay(Input& input);
  void warn(const std::string& line) const;

  const Clip& clip_;
  ParameterArena& arena_;
  AdamW& optimizer_;
  Options options_;
  Device device_;
  Tensor step_on_device_;  // () i64
  Tensor stop_on_device_;  // () of the masters' type: 1 where this rank was asked to stop
  Tensor results_;  // (3) of the masters' type: loss, ranks asked to stop, logit scale before the update
  Communicator& ranks_;
  DataParallel parallel_;
  PatchDropout dropout_;
  std::array<Input, 2> inputs_;
  size_t current_ = 1;  // input that was brought last
  std::array<Slot, 2> ring_;
  size_t next_slot_ = 0;
  std::deque<Flight> flights_;
  std::shared_ptr<Moment> last_end_;
  std::map<int64_t, Captures> captures_;  // by length
  bool captured_ = false;
};

}  // namespace switchback
