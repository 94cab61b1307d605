// trainer.h: a small model with its optimizer and TrainingStep on any device, and random batches by number.
#pragma once

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "apps/training_step.h"
#include "kernels/transfer.h"
#include "models/presets.h"
#include "nn/parameter.h"
#include "optim/groups.h"
#include "optim/stable_adamw.h"
#include "runtime/philox.h"

namespace switchback {

struct TrainerOptions {
  std::string model = "tiny";
  int64_t batch_size = 12;
  DType dtype = DType::f32;
  Device device = cpu_device;
  bool stable = false, siglip = false, eager = false;
  bool in_backward = false;             // the optimizer's update
  std::string linear = "standard";      // recipe
  std::vector<std::string> frozen{};    // globs of parameters
  Recompute recompute = Recompute::none;
  double patch_dropout = 0, layer_scale = -1;  // below 0: none
  int64_t parts = 1;
  // How long the longest caption of each batch is, batch by batch in turns; empty: token ids at random
  std::vector<int64_t> longest{};
  bool whole_text = false;
  Communicator* ranks = nullptr;  // on the CPU
};

struct Trainer {
  TrainerOptions options;
  ClipConfig config;
  ParameterArena arena;
  Clip clip;
  std::unique_ptr<AdamW> optimizer;
  std::vector<std::string> warnings;
  std::unique_ptr<TrainingStep> step;
  std::vector<StepNumbers> done;
  int64_t next = 0;  // step

  explicit Trainer(const TrainerOptions& o)
      : options(o), config(config_of(o)), arena(o.dtype, o.device, 1), clip(arena, config) {
    if (o.in_backward) arena.share_gradients();
    arena.allocate();
    for (size_t i = 0; i < arena.segments().size(); ++i)
      for (const std::string& glob : o.frozen)
        if (matches_glob(arena.segments()[i].name, glob)) arena.freeze(i);
    optimizer = std::make_unique<AdamW>(arena, o.stable ? stable_adamw() : AdamWOptions());
    TrainingStep::Options step_options;
    step_options.clip.recompute = o.recompute;
    step_options.seed = 7;
    step_options.parts = o.parts;
    step_options.eager = o.eager;
    step_options.ranks = step_options.host = o.ranks;
    step_options.warn = [this](const std::string& line) { warnings.push_back(line); };
    step = std::make_unique<TrainingStep>(clip, arena, *optimizer, o.batch_size, step_options);
  }

  static ClipConfig config_of(const TrainerOptions& o) {
    ClipConfig c = find_model(o.model);
    c.vision.patch_dropout = o.patch_dropout;
    if (o.layer_scale >= 0) c.vision.layer_scale = c.text.layer_scale = o.layer_scale;
    if (o.siglip) c.init_logit_bias = -10;
    c.whole_text = o.whole_text;
    c.vision.linear = c.text.linear = o.linear;
    return c;
  }
  Tensor images(uint64_t number, int64_t size) const {
    PhiloxStream random(5, RandomPurpose::test, number);
    const Tensor t =
        Tensor::page_locked({size, config.vision.image_size, config.vision.image_size, 3}, DType::u8);
    for (uint8_t& v : t.span<uint8_t>()) v = static_cast<uint8_t>(random.below(256));
    return t;
  }
  Tensor tokens(uint64_t number, int64_t size) const {
    PhiloxStream random(6, RandomPurpose::test, number);
    const Tensor t = Tensor::page_locked({size, config.text.context_length}, DType::i32);
    for (int32_t& v : t.span<int32_t>())
      v = static_cast<int32_t>(random.below(static_cast<uint64_t>(config.text.vocab_size)));
    if (options.longest.empty()) return t;
    const int64_t longest = options.longest[number % options.longest.size()], columns = t.cols();
    for (int64_t row = 0; row < size; ++row) {
      const auto ids =
          t.span<int32_t>().subspan(static_cast<size_t>(row * columns), static_cast<size_t>(columns));
      const auto end =
          row == 0 ? longest - 1 : static_cast<int64_t>(random.below(static_cast<uint64_t>(longest)));
      for (int32_t& v : ids) v %= static_cast<int32_t>(config.text.vocab_size - 1);
      ids[static_cast<size_t>(end)] = static_cast<int32_t>(config.text.vocab_size - 1);
    }
    return t;
  }
  static double rate(int64_t step) { return 1e-3 / static_cast<double>(1 + step % 3); }

  // The next step, on one of four batches in turns.
  void launch(int64_t size = 0) {
    if (size == 0) size = options.batch_size;
    step->bring(images(static_cast<uint64_t>(next % 4), size), tokens(static_cast<uint64_t>(next % 4), size));
    step->launch(next, rate(next));
    ++next;
    if (auto numbers = step->collect()) done.push_back(*numbers);
  }
  void finish() {
    while (auto numbers = step->collect(true)) done.push_back(*numbers);
  }
  void train(int64_t steps) {
    for (int64_t i = 0; i < steps; ++i) launch();
    finish();
  }

  // As from a checkpoint; on the CPU.
  void go_on_from(const Trainer& other) {
    const auto copy = [](const Tensor& to, const Tensor& from) {
      std::memcpy(to.data(), from.data(), CView(to).bytes());
    };
    copy(arena.masters(), other.arena.masters());
    arena.publish_masters();
    const auto state = optimizer->state(), of_other = other.optimizer->state();
    for (size_t i = 0; i < state.size(); ++i) copy(state[i].second, of_other[i].second);
    next = other.next;
  }

  // Every bit of masters, values and moments.
  std::string bits() const {
    std::string all;
    const auto add = [&all](const Tensor& tensor) {
      if (!tensor.defined()) return;
      const Tensor host = to_host(tensor);
      all.append(static_cast<const char*>(host.data()), CView(host).bytes());
    };
    add(arena.masters());
    add(arena.values());
    for (const auto& [name, tensor] : optimizer->state()) add(tensor);
    return all;
  }
  std::vector<double> losses() const {
    std::vector<double> all;
    for (const StepNumbers& numbers : done) all.push_back(numbers.loss);
    return all;
  }
};

}  // namespace switchback
