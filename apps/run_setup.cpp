#include "apps/run_setup.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <utility>

#include "apps/locking.h"
#include "models/flops.h"
#include "models/interchange.h"
#include "nn/parameter.h"
#include "runtime/check.h"

namespace switchback {

PixelNormalization pixel_normalization(const TrainingOptions& o) {
  PixelNormalization n;
  for (size_t c = 0; c < 3; ++c) {
    if (!o.image_mean.empty()) n.mean[c] = static_cast<float>(o.image_mean[c]);
    if (!o.image_std.empty()) n.std[c] = static_cast<float>(o.image_std[c]);
  }
  return n;
}

std::shared_ptr<SampleSource> open_training_data(const TrainingOptions& o, const ClipConfig& config,
                                                 Warn warn) {
  if (o.dry_run && o.train_data.empty() && o.dataset_type != "synthetic") return nullptr;
  SourceOptions s;
  s.data = o.train_data;
  s.type = o.dataset_type;
  s.needs.image_suffixes = suffixes_of(o.image_key);
  s.needs.caption_suffixes = suffixes_of(o.text_key);
  s.needs.json_captions = o.json_text_key;
  s.needs.json_caption_weights = o.json_text_key_probs;
  s.resampled = o.dataset_resampled;
  if (o.dataset_type != "synthetic") s.upsampling_factors = o.upsampling_factors;  // of shards
  s.skip_bad_shards = o.skip_bad_shards;
  s.csv_separator = o.csv_separator;
  s.csv_image_key = o.csv_img_key;
  s.csv_caption_key = o.csv_caption_key;
  s.synthetic_samples = o.train_num_samples.value_or(0);
  s.synthetic_image_size = static_cast<int>(config.vision.image_size);
  s.warn = std::move(warn);
  return open_source(s);
}

int64_t samples_of_epoch(const TrainingOptions& o, SampleSource* source) {
  int64_t samples = o.train_num_samples.value_or(0);
  if (samples == 0 && source) {
    const std::optional<uint64_t> declared = source->declared_count();
    if (!declared && source->streamed())
      fail("--train-num-samples is needed: shards that come as streams cannot be counted beforehand");
    samples = static_cast<int64_t>(declared ? *declared : source->count());
  }
  if (samples == 0)
    fail(source ? source->why_empty() : "--train-num-samples is needed for a dry run without data");
  return samples;
}

LoaderOptions training_loader(const TrainingOptions& o, const ClipConfig& config, int64_t batch, Warn warn) {
  LoaderOptions l;
  l.batch_size = batch;
  l.workers = static_cast<int>(o.workers);
  l.shuffle_window = static_cast<uint64_t>(o.shuffle_window);
  l.image_size = static_cast<int>(config.vision.image_size);
  for (size_t i = 0; i < 2; ++i) {
    l.crop.scale[i] = o.crop_scale[i];
    l.crop.ratio[i] = o.crop_ratio[i];
  }
  const auto& [brightness, contrast, saturation, hue] = o.color_jitter;
  l.colors = {brightness, contrast, saturation, hue, o.color_jitter_prob, o.gray_scale_prob};
  l.decode.max_image_pixels = o.max_image_pixels;
  // The smallest crop still has the model's size.
  if (o.fast_decode)
    l.decode.fast_decode_edge =
        static_cast<int64_t>(std::ceil(static_cast<double>(l.image_size) / std::sqrt(o.crop_scale[0])));
  l.warn = std::move(warn);
  return l;
}

EvaluationOptions evaluation_options(const TrainingOptions& o) {
  EvaluationOptions e;
  e.retrieval_data = o.val_data;
  e.zero_shot_data = o.zeroshot_data;
  e.label_key = o.zeroshot_label_key;
  e.class_names = o.zeroshot_classes;
  e.templates = o.zeroshot_templates;
  if (!o.imagenet_val.empty()) {
    e.zero_shot_data = o.imagenet_val;
    e.imagenet = true;
  }
  e.dataset_type = o.dataset_type;
  e.csv_separator = o.csv_separator;
  e.csv_image_key = o.csv_img_key;
  e.csv_caption_key = o.csv_caption_key;
  e.image_suffixes = suffixes_of(o.image_key);
  e.caption_suffixes = suffixes_of(o.text_key);
  e.json_captions = o.json_text_key;
  e.interpolation = parse_interpolation(o.image_interpolation);
  e.resize_mode = parse_resize_mode(o.image_resize_mode);
  e.samples = o.val_num_samples;
  e.batch_size = o.batch_size;
  e.workers = static_cast<int>(o.workers);
  return e;
}

void prepare_parameters(const TrainingOptions& o, const ClipConfig& config, ParameterArena& arena,
                        const Warn& say) {
  if (!o.pretrained.empty()) {
    const StoredModel stored = StoredModel::find(o.pretrained);
    if (stored.config && stored.config->quick_gelu != config.quick_gelu)
      say(concat("the weights of ", o.pretrained, " were trained with ",
                 stored.config->quick_gelu ? "QuickGELU: add --force-quick-gelu"
                                           : "the exact GELU: this model has QuickGELU"));
    load_clip_weights(o.pretrained, arena, say);
    say("weights from " + stored.weights);
  }
  const double all = static_cast<double>(arena.parameter_count());
  auto lock = [&](const char* name, Tower tower, int64_t unlocked) {
    const int64_t locked = lock_tower(arena, config, tower, unlocked);
    say(concat("the ", name, " tower is locked: ", locked, " parameters (",
               std::lround(100 * static_cast<double>(locked) / all), "%) keep their values",
               o.pretrained.empty() && o.resume.empty() ? ", which are random: see --pretrained" : ""));
  };
  if (o.lock_image) lock("image", Tower::image, o.lock_image_unlocked_groups);
  if (o.lock_text) lock("text", Tower::text, o.lock_text_unlocked_layers);
}

namespace {

// f32 products per second of this CPU, times 2: the best of a few products of 512 x 512 matrices.
double cpu_flops() {
  const int64_t n = 512;
  Tensor a({n, n}, DType::f32), b({n, n}, DType::f32), c({n, n}, DType::f32);
  Kernels& k = kernels(cpu_device);
  k.fill(a, 1), k.fill(b, 1);
  double best = 1e9;
  for (int i = 0; i < 5; ++i) {
    const auto start = std::chrono::steady_clock::now();
    k.matmul({c}, a, Transpose::no, b, Transpose::yes);
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return 2 * static_cast<double>(n * n * n) / best;
}

std::string duration(double seconds) {
  char text[64];
  if (seconds < 120)
    std::snprintf(text, sizeof text, "%.0f s", seconds);
  else if (seconds < 7200)
    std::snprintf(text, sizeof text, "%.0f min", seconds / 60);
  else if (seconds < 4 * 86400)
    std::snprintf(text, sizeof text, "%.1f h", seconds / 3600);
  else
    std::snprintf(text, sizeof text, "%.1f days", seconds / 86400);
  return text;
}

}  // namespace

void report_dry_run(const TrainingOptions& o, const ClipConfig& config, const DryRun& run, const Warn& say) {
  const double parameters = static_cast<double>(parameter_count(config));
  const bool narrow = run.dtype == DType::bf16;  // f32 masters are the values of an f32 model
  say(concat("Memory: ", parameters * (narrow ? 18 : 16) / (1 << 30), " GiB for masters, gradients",
             narrow ? ", bf16 values" : "", " and two moments; activations come on top"));

  const double samples = static_cast<double>(run.samples_per_step) * static_cast<double>(run.total_steps);
  const double nominal = samples * nominal_flops(config).training();
  const bool again = o.grad_checkpointing || o.accum_freq > 1;  // one more forward pass
  const double work = again ? nominal * 4 / 3 : nominal;
  say(concat("Work: ", samples, " samples x ", nominal_flops(config).training() / 1e9, " GFLOP = ",
             nominal / 1e18, " EFLOP", again ? ", and a third of that again for recomputation" : ""));
  if (run.device.kind == Device::cpu) {
    const double rate = cpu_flops();
    say(concat("Expected time: at least ", duration(work / rate), " (at ", std::lround(rate / 1e9),
               " GFLOP/s, the rate of this CPU's matrix products just now), and the evaluations"));
  } else {
    constexpr double h100 = 989e12;
    say(concat("Expected time: ", duration(work / h100 / 0.4), " on one H100 at 40% of its ", h100 / 1e12,
               " TFLOP/s of bf16, and the evaluations"));
  }
}

}  // namespace switchback
