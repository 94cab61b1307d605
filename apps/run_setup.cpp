#include "apps/run_setup.h"

#include <utility>

#include "apps/checkpoint.h"
#include "models/flops.h"
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
  l.warn = std::move(warn);
  return l;
}

EvaluationOptions evaluation_options(const TrainingOptions& o) {
  EvaluationOptions e;
  e.retrieval_data = o.val_data;
  e.zero_shot_data = o.zeroshot_data;
  e.label_key = o.zeroshot_label_key;
  e.class_names = o.zeroshot_classes;
  e.dataset_type = o.dataset_type;
  e.csv_separator = o.csv_separator;
  e.csv_image_key = o.csv_img_key;
  e.csv_caption_key = o.csv_caption_key;
  e.samples = o.val_num_samples;
  e.batch_size = o.batch_size;
  e.workers = static_cast<int>(o.workers);
  return e;
}

void prepare_parameters(const TrainingOptions& o, const ClipConfig&, ParameterArena& arena, const Warn&) {
  if (!o.pretrained.empty()) load_weights(o.pretrained, arena);
}

void report_dry_run(const TrainingOptions&, const ClipConfig& config, const DryRun& run, const Warn& say) {
  const double parameters = static_cast<double>(parameter_count(config));
  const double values = run.dtype == DType::bf16 ? 2 : 0;  // f32 masters are the values of an f32 model
  say(concat("Memory: ", parameters * (16 + values) / 1e9, " GB for masters, gradients, two moments",
             values > 0 ? " and bf16 values" : "", "; activations come on top"));
}

}  // namespace switchback
