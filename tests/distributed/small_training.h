// small_training.h: a few f64 steps of the smallest CLIP, on one rank or many: the global batch and
// everything else that decides the result is the same, so the results must be.
#pragma once

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "autograd/checkpoint.h"
#include "kernels/transfer.h"
#include "models/clip.h"
#include "models/presets.h"
#include "nn/data_parallel.h"
#include "optim/adamw.h"
#include "runtime/philox.h"

namespace switchback {

struct SmallPlan {
  int64_t global_batch = 8, steps = 3;
  int64_t parts = 1;  // --accum-freq
  bool siglip = false, recompute = false, stable = true, bf16 = false;
  bool sharded = false;  // --zero 1
  Overlap overlap = Overlap::automatic;
  double max_gradient_norm = 0;
  std::string model = "tiny", linear = "standard";
  int64_t resume_at = 0;  // after this step the optimizer is replaced by a copy made of its state
  DType dtype = DType::f64;
};

struct SmallResult {
  std::vector<double> losses;              // (steps) of the global batch
  std::vector<double> gradients, weights;  // of all parameters, after the last step
  std::vector<double> moments, rms;        // of the optimizer
  std::vector<std::string> order;          // of the buckets
  bool cut = false;                        // some tensor lies in two shards
  bool codes_travelled = false;            // in place of masters
};

inline std::vector<double> as_doubles(const Tensor& t) {
  return visit_float(t.dtype(), "small training", [&](auto tag) {
    const auto values = t.span<decltype(tag)>();
    std::vector<double> out;
    for (auto v : values) out.push_back(static_cast<double>(static_cast<Statistics<decltype(tag)>>(v)));
    return out;
  });
}

// This rank's rows of the global batch of `step`.
inline void make_batch(const ClipConfig& c, int64_t step, int64_t first, int64_t count, Tensor& images,
                       Tensor& tokens) {
  const int64_t pixels = c.vision.image_size * c.vision.image_size * 3, length = c.text.context_length;
  images = Tensor({count, c.vision.image_size, c.vision.image_size, 3}, DType::u8);
  tokens = Tensor({count, length}, DType::i32);
  for (int64_t row = 0; row < count; ++row) {
    PhiloxStream random(static_cast<uint64_t>(step), RandomPurpose::test, static_cast<uint64_t>(first + row));
    for (int64_t i = 0; i < pixels; ++i)
      images.span<uint8_t>()[static_cast<size_t>(row * pixels + i)] = static_cast<uint8_t>(random.below(256));
    for (int64_t i = 0; i < length; ++i)
      tokens.span<int32_t>()[static_cast<size_t>(row * length + i)] =
          static_cast<int32_t>(random.below(static_cast<uint64_t>(c.text.vocab_size - 1)));
    tokens.span<int32_t>()[static_cast<size_t>(row * length + length / 2)] =
        static_cast<int32_t>(c.text.vocab_size - 1);
  }
}

inline SmallResult train_small(const SmallPlan& plan, Communicator& ranks) {
  ClipConfig config = find_model(plan.model);
  config.vision.linear = config.text.linear = plan.linear;
  if (plan.siglip) config.init_logit_bias = -3, config.init_logit_scale = 2;
  ParameterArena arena(plan.dtype, cpu_device, 3);
  Clip clip(arena, config);
  arena.allocate(plan.sharded ? ranks.world_size() : 1);
  DataParallel parallel(arena, ranks, {.bf16 = plan.bf16, .sharded = plan.sharded, .overlap = plan.overlap});
  AdamWOptions options;
  options.update.clip_update = plan.stable;
  options.update.max_gradient_norm = plan.max_gradient_norm;
  OptimizerShard shard;
  if (plan.sharded) shard = {&ranks, parallel.shard_start(), parallel.shard_size()};
  auto optimizer = std::make_unique<AdamW>(arena, options, shard);

  SmallResult result;
  const int64_t batch = plan.global_batch / ranks.world_size(), part = batch / plan.parts;
  for (int64_t step = 0; step < plan.steps; ++step) {
    Tensor images, tokens;
    make_batch(config, step, batch * ranks.rank(), batch, images, tokens);
    const Clip::Options forward{.recompute = plan.recompute ? Recompute::blocks : Recompute::none};
    std::vector<Variable> image_features, text_features;
    parallel.begin_backward(plan.parts);
    for (int64_t p = 0; p < plan.parts; ++p) {
      const Tensor some_images = images.slice(p * part, part), some_tokens = tokens.slice(p * part, part);
      const auto image_tower = [&clip, some_images, forward](const Variable&) {
        return clip.encode_image(some_images, forward);
      };
      const auto text_tower = [&clip, some_tokens, forward](const Variable&) {
        return clip.encode_text(some_tokens, forward);
      };
      image_features.push_back(plan.parts == 1 ? image_tower({}) : checkpoint({}, image_tower));
      text_features.push_back(plan.parts == 1 ? text_tower({}) : checkpoint({}, text_tower));
    }
    const Variable loss = clip.loss(concat_rows(image_features), concat_rows(text_features), ranks);
    const Tensor total = Tensor::of<double>({1}, {number(loss.value())});
    ranks.all_reduce(total);
    result.losses.push_back(total.span<double>()[0]);
    tape().backward(loss);
    parallel.finish_backward();
    optimizer->step(1e-3);
    parallel.share_values();
    if (arena.codes_travel()) {  // nobody reads what did not travel
      result.codes_travelled = true;
      const Tensor& values = arena.values().defined() ? arena.values() : arena.masters();
      const int64_t from = parallel.shard_start(), to = from + parallel.shard_size();
      for (size_t i = 0; i < arena.segments().size(); ++i)
        if (const auto& s = arena.segments()[i]; arena.has_codes(i) && (s.from < from || s.from >= to))
          kernels(cpu_device).fill(values.part(s.from, s.shape), std::nan(""));
    }
    if (plan.resume_at == step + 1) {  // the state goes to a new optimizer, as through a checkpoint
      const auto state = optimizer->state();
      optimizer = std::make_unique<AdamW>(arena, options, shard);
      const auto to = optimizer->state_to_fill();
      for (size_t i = 0; i < to.size(); ++i) kernels(cpu_device).upload(to[i].second, state[i].second);
      optimizer->restore(to);
    }
    clip.clamp_logit_scale();
  }
  parallel.share_masters();
  if (plan.sharded)  // each rank has the sums of its shard
    ranks.all_gather(arena.gradients(),
                     arena.gradients().part(parallel.shard_start(), {parallel.shard_size()}));
  result.rms = optimizer->report().rms;
  result.cut = plan.sharded && arena.shards_cut_tensors(ranks.world_size());
  for (const auto& [name, tensor] : optimizer->state(true, 1000))  // in several pieces
    if (name != "optimizer.step")
      for (double v : as_doubles(tensor)) result.moments.push_back(v);
  for (const auto& s : arena.segments()) {
    for (double v : as_doubles(arena.gradient_of(s))) result.gradients.push_back(v);
    for (double v : as_doubles(arena.master_of(s))) result.weights.push_back(v);
  }
  result.order = parallel.order();
  return result;
}

// Largest difference, against the largest value.
inline double difference(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size() || b.empty()) return 1e300;
  double most = 0, largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!(std::abs(a[i] - b[i]) < 1e300)) return 1e300;
    most = std::max(most, std::abs(a[i] - b[i]));
    largest = std::max(largest, std::abs(b[i]));
  }
  return most / largest;
}

}  // namespace switchback
