#include "apps/training_step.h"

#include <cmath>
#include <cstring>
#include <optional>
#include <vector>

#include "autograd/checkpoint.h"
#include "kernels/transfer.h"
#include "models/text_length.h"
#include "optim/update_in_backward.h"
#include "runtime/allocator.h"

namespace switchback {
namespace {

constexpr int warm_up_steps = 2;  // op by op, before the first capture of a length
constexpr int attempts = 3;       // to capture, before all steps of that length go op by op

double value_at(const Tensor& host, int64_t i) { return number(host.part(i, {})); }

}  // namespace

TrainingStep::TrainingStep(const Clip& clip, ParameterArena& arena, AdamW& optimizer, int64_t batch_size,
                           Options options)
    : clip_(clip),
      arena_(arena),
      optimizer_(optimizer),
      options_(std::move(options)),
      device_(arena.device()),
      step_on_device_({}, DType::i64, device_),
      stop_on_device_({}, arena.masters().dtype(), device_),
      results_({3}, arena.masters().dtype(), device_),
      ranks_(options_.ranks ? *options_.ranks : single_rank()),
      parallel_(arena, ranks_, options_.parallel),
      dropout_{options_.seed, step_on_device_, ranks_.rank() * batch_size} {
  CHECK(options_.parts >= 1 && batch_size % options_.parts == 0, "a batch of ", batch_size, " in ",
        options_.parts, " parts");
  CHECK(!arena.shares_gradients() || (options_.parts == 1 && ranks_.world_size() == 1),
        "gradients of blocks share memory only on one rank and without parts");
  const ClipConfig& config = clip.config();
  if (config.vision.patch_dropout > 0) options_.clip.dropout = &dropout_;
  const MemoryContext memory("batch");
  const int64_t size = config.vision.image_size;
  for (Input& input : inputs_) {
    input.images = Tensor({batch_size, size, size, 3}, DType::u8, device_);
    input.tokens = Tensor({batch_size * config.text.context_length}, DType::i32, device_);
    if (text_may_stop(config)) input.columns = Tensor::page_locked(input.tokens.shape(), DType::i32);
  }
  const MemoryContext results("results");
  for (Slot& slot : ring_) {
    slot.results = Tensor::page_locked(results_.shape(), results_.dtype());
    slot.numbers = Tensor::page_locked(optimizer.numbers().shape(), optimizer.numbers().dtype());
  }
  arena.table();  // uploaded now, not within a step
  kernels(device_).fill(stop_on_device_, 0);
  if (optimizer.update_waits()) options_.eager = true;
}

TrainingStep::~TrainingStep() {
  try {
    kernels(device_).synchronize();  // nothing may be on its way from or to what goes now
    for (Input& input : inputs_)
      if (input.arrived) input.arrived->wait();
  } catch (const Error&) {  // the device is lost: whoever noticed it first has said so
  }
}

void TrainingStep::warn(const std::string& line) const {
  if (options_.warn) options_.warn(line);
}

bool TrainingStep::captured() const { return captured_; }

std::string TrainingStep::about_ranks() const {
  std::string line = concat(ranks_.world_size(), " ranks; gradients travel ",
                            parallel_.overlaps() ? "beside" : "behind", " the backward pass");
  if (const auto m = parallel_.measured(); m.bytes > 0)
    line += concat(" (--overlap-reduce auto: an all-reduce of ", std::round(m.bytes * 1e-6), " MB takes ",
                   std::round(m.seconds * 1e5) / 100, " ms)");
  return line;
}

void TrainingStep::bring(const Tensor& images, const Tensor& tokens) {
  current_ = 1 - current_;
  Input& input = inputs_[current_];
  const int64_t size = images.shape()[0];
  CHECK(size >= 1 && size <= input.images.shape()[0] && tokens.shape()[0] == size, "a batch of ", size,
        " images and ", tokens.shape()[0], " texts; the step was made for ", input.images.shape()[0]);
  if (size != input.images.shape()[0])
    warn(concat("a batch of ", size, " instead of ", input.images.shape()[0], ": this step runs op by op"));
  if (size % options_.parts != 0)
    fail("a batch of ", size, " cannot be cut into --accum-freq ", options_.parts, " parts");
  input.size = size;
  input.length = agreed_length(tokens);
  Kernels& k = kernels(device_);
  if (input.arrived) input.arrived->wait();  // long ago, as a rule; its host memory goes now
  Tensor needed = tokens;
  if (input.length < tokens.cols()) {
    needed = input.columns.part(0, {size, input.length});
    copy_columns(needed, tokens);
  }
  // The copies follow each other on their way, so the second one's arrival is the arrival of both.
  k.upload_beside(input.batch_images(), images, input.used.get());
  input.arrived = k.upload_beside(input.batch_tokens(), needed, input.used.get());
  input.host_images = images;
  input.host_tokens = tokens;
}

int64_t TrainingStep::agreed_length(const Tensor& tokens) const {
  if (!text_may_stop(clip_.config())) return tokens.cols();
  const Tensor length = Tensor::of<int64_t>({1}, {switchback::text_length(tokens)});
  if (options_.host) options_.host->all_reduce(length, Reduction::max);
  return length.span<int64_t>()[0];
}

void TrainingStep::launch(int64_t step, double learning_rate, bool stop) {
  Input& input = inputs_[current_];
  CHECK(input.arrived, "launch() before bring()");
  CHECK(flights_.size() < ring_.size(), "two steps are launched and not collected");
  Kernels& k = kernels(device_);
  k.wait_for(*input.arrived);
  Flight flight{step, 0, next_slot_, k.mark(), last_end_, nullptr};
  next_slot_ = 1 - next_slot_;
  k.upload(step_on_device_, Tensor::of<int64_t>({}, {step}));
  if (stop) k.fill(stop_on_device_, 1);  // not within a recording
  optimizer_.begin_step(learning_rate);
  try {
    run_or_replay(input);
  } catch (...) {  // out of memory: a checkpoint made now must not count a step that did not happen
    optimizer_.take_back_step();
    throw;
  }
  input.last_step = step;
  k.download_later(ring_[flight.slot].results, results_);
  k.download_later(ring_[flight.slot].numbers, optimizer_.numbers());
  flight.update = optimizer_.steps_done();
  flight.end = k.mark();
  input.used = last_end_ = flight.end;
  flights_.push_back(std::move(flight));
}

std::optional<StepNumbers> TrainingStep::collect(bool newest) {
  if (flights_.empty() || (flights_.size() == 1 && !newest)) return {};
  const Flight flight = std::move(flights_.front());
  flights_.pop_front();
  flight.end->wait();
  for (Input& input : inputs_)  // uploaded long ago: its memory may serve the loader again
    if (input.arrived && input.arrived->passed()) input.host_images = input.host_tokens = {};
  StepNumbers numbers;
  numbers.step = flight.step;
  numbers.loss = value_at(ring_[flight.slot].results, 0);
  numbers.stop = value_at(ring_[flight.slot].results, 1) > 0;
  numbers.logit_scale = std::exp(value_at(ring_[flight.slot].results, 2));
  numbers.work_seconds = flight.end->seconds_since(*flight.begin);
  if (flight.before) numbers.idle_seconds = flight.begin->seconds_since(*flight.before);
  optimizer_.receive(flight.update, ring_[flight.slot].numbers);
  numbers.optimizer = optimizer_.report();
  return numbers;
}

void TrainingStep::run_or_replay(Input& input) {
  captured_ = false;
  const bool whole = input.size == input.images.shape()[0];
  Captures& of_length = captures_[input.length];
  if (options_.eager || Tape::observed() || !whole || of_length.whole_steps < warm_up_steps ||
      of_length.failures == attempts) {
    run(input);
    of_length.whole_steps += whole;
    return;
  }
  std::unique_ptr<Recording>& recording = input.recordings[input.length];
  if (!recording) {
    try {
      recording = kernels(device_).record([&] { run(input); });
      if (!recording) options_.eager = true;  // the device has no such thing: the CPU
    } catch (const Error& error) {
      tape().clear();
      const bool last = ++of_length.failures == attempts;
      warn(concat("the step could not be captured as a CUDA graph: ", error.what(), "; ",
                  last ? concat("all steps with texts of ", input.length, " tokens run") : "this step runs",
                  " op by op", last ? " from now on" : ""));
    }
  }
  if (recording) {
    try {
      recording->replay();
      captured_ = true;
      return;
    } catch (const Error& error) {
      warn(concat(error.what(), ": this step runs op by op"));
    }
  }
  run(input);
}

// Kernel calls only: this is what is captured.
void TrainingStep::run(const Input& input) {
  const MemoryContext memory("activations");
  Kernels& k = kernels(device_);
  std::optional<UpdateInBackward> update;
  if (arena_.shares_gradients()) update.emplace(arena_, optimizer_);
  parallel_.begin_backward(options_.parts);
  const Variable loss = forward(input.batch_images(), input.batch_tokens());
  k.cast(results_.part(0, {}), loss.value());
  k.cast(results_.part(1, {}), stop_on_device_);
  k.cast(results_.part(2, {}), clip_.logit_scale().value());  // of this loss, as open_clip logs it
  tape().backward(loss);
  ranks_.all_reduce(results_.part(0, {2}));  // beside the last gradients, joined with them
  parallel_.finish_backward();
  update ? update->finish() : optimizer_.update();
  parallel_.share_values();
  clip_.clamp_logit_scale();
}

Variable TrainingStep::forward(const Tensor& images, const Tensor& tokens) const {
  const int64_t parts = options_.parts;
  if (parts == 1)
    return clip_.loss(clip_.encode_image(images, options_.clip), clip_.encode_text(tokens, options_.clip),
                      ranks_);
  const int64_t size = images.shape()[0] / parts;
  std::vector<Variable> image_features, text_features;  // (size, E) each
  for (int64_t part = 0; part < parts; ++part) {
    Tensor part_images = images.slice(part * size, size), part_tokens = tokens.slice(part * size, size);
    std::optional<PatchDropout> dropout;  // by value: the closure outlives this call
    if (options_.clip.dropout) dropout = *options_.clip.dropout, dropout->first_sample += part * size;
    image_features.push_back(checkpoint({}, [this, part_images, dropout](const Variable&) {
      Clip::Options o = options_.clip;
      o.dropout = dropout ? &*dropout : nullptr;
      return clip_.encode_image(part_images, o);
    }));
    text_features.push_back(checkpoint(
        {}, [this, part_tokens](const Variable&) { return clip_.encode_text(part_tokens, options_.clip); }));
  }
  return clip_.loss(concat_rows(image_features), concat_rows(text_features), ranks_);
}

void TrainingStep::rehearse() {
  const MemoryContext memory("activations");
  Kernels& k = kernels(device_);
  const Input& input = inputs_[1 - current_];
  k.upload(step_on_device_, Tensor::of<int64_t>({}, {0}));
  for (const Tensor& tensor : {input.images, input.tokens}) {
    const Tensor blank(tensor.shape(), tensor.dtype());
    std::memset(blank.data(), 0, CView(blank).bytes());
    k.upload(tensor, blank);
  }
  parallel_.begin_backward(options_.parts);
  const Tensor& images = input.images;
  tape().backward(
      forward(images, input.tokens.part(0, {images.shape()[0], clip_.config().text.context_length})));
  parallel_.finish_backward();
  k.synchronize();
}

void TrainingStep::repeat_forward(int64_t step) {
  for (const Input& input : inputs_) {
    if (input.last_step != step) continue;
    kernels(device_).upload(step_on_device_, Tensor::of<int64_t>({}, {step}));
    forward(input.batch_images(), input.batch_tokens());
    return;
  }
  CHECK(false, "the batch of step ", step, " is gone");
}

}  // namespace switchback
