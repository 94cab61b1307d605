// training_options.h: the flags of clip_train, with open_clip's names and defaults where they exist.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "models/config.h"

namespace switchback {

struct TrainingOptions {
  // data
  std::string train_data, val_data;
  std::optional<int64_t> train_num_samples, val_num_samples;
  std::string dataset_type = "auto";  // webdataset, csv, synthetic, auto
  std::string image_key = "jpg;png;jpeg;webp", text_key = "txt";
  std::vector<std::string> json_text_key;
  std::vector<double> json_text_key_probs;
  int64_t max_image_pixels = 25'000'000;
  bool fast_decode = false;
  std::string image_interpolation = "bicubic", image_resize_mode = "shortest";  // of evaluations
  bool dataset_resampled = false;
  std::string train_data_upsampling_factors;  // "1::2"
  std::vector<double> upsampling_factors;     // from it
  bool skip_bad_shards = false;
  std::string csv_separator = "\t", csv_img_key = "filepath", csv_caption_key = "title";
  std::string tokenizer;  // vocabulary file, "bytes", or empty: by the model's vocabulary size
  int64_t workers = 4;
  int64_t shuffle_window = 16384;
  std::vector<double> image_mean, image_std;  // 3 each, or empty: CLIP's
  std::vector<std::string> aug_cfg;           // scale=(0.9,1.0) ratio=(0.75,1.33)
  std::array<double, 2> crop_scale{0.9, 1.0}, crop_ratio{3.0 / 4, 4.0 / 3};  // from aug_cfg
  std::array<double, 4> color_jitter{};                 // brightness, contrast, saturation, hue; from aug_cfg
  double color_jitter_prob = 0.8, gray_scale_prob = 0;  // from aug_cfg

  // model
  std::string model;
  std::string pretrained;          // safetensors weights to start from
  std::string precision = "auto";  // fp32, amp_bf16, ...; auto: fp32 on a CPU, amp_bf16 on a GPU
  std::string device = "auto";     // cpu, cuda; auto: a GPU where there is one
  std::optional<int64_t> force_image_size, force_context_length;
  bool force_quick_gelu = false;
  std::optional<double> force_patch_dropout, layer_scale;
  bool siglip = false;
  bool lock_image = false, lock_text = false;
  int64_t lock_image_unlocked_groups = 0, lock_text_unlocked_layers = 0;
  bool grad_checkpointing = false;  // --recompute blocks
  std::string linear;               // recipe of the blocks' linears (kernels/recipe.h); "": as the model says
  std::string use_bnb_linear;       // open_clip's name of a recipe
  std::string linear_image, linear_text;              // "": as --linear says
  std::string recompute = "none";                     // gelu, cheap, blocks, gelu:8 (autograd/checkpoint.h)
  bool whole_last_block = false, whole_text = false;  // compute what nobody reads, too (models/config.h)

  // optimization
  int64_t batch_size = 64;
  int64_t accum_freq = 1;
  int64_t epochs = 32;
  std::optional<int64_t> max_steps;
  std::string opt = "adamw";  // or stableadamw
  double lr = 5e-4;
  double beta1 = 0.9, beta2 = 0.98, eps = 1e-6, wd = 0.2;
  std::optional<double> beta2_lambda;  // β2 = 1 - t^-λ
  bool decay_clipped_rate = false;
  std::string wd_groups = "head";
  std::vector<std::string> wd_exclude;
  std::optional<double> grad_clip_norm;
  int64_t warmup = 10000;
  std::string lr_scheduler = "cosine";
  std::optional<int64_t> epochs_cooldown;
  double lr_cooldown_end = 0, lr_cooldown_power = 1;
  bool skip_scheduler = false;

  // evaluation
  std::string zeroshot_data;  // labelled shards, an ImageFolder or a list of files
  std::string imagenet_val;   // an ImageFolder, with ImageNet's class names and templates
  std::string zeroshot_classes, zeroshot_templates, zeroshot_label_key;
  int64_t val_frequency = 1, zeroshot_frequency = 2;  // epochs
  std::optional<int64_t> eval_every_n_steps;

  // run
  std::string logs = "./logs/", name;
  int64_t log_every_n_steps = 100;
  std::optional<int64_t> log_metric_every_n_steps;
  int64_t seed = 0;
  std::string resume;          // "latest" or a checkpoint folder
  int64_t save_frequency = 1;  // epochs; 0: only at the end
  std::optional<int64_t> save_every_n_steps;
  std::optional<int64_t> keep_last_k;
  bool delete_previous_checkpoint = false;
  bool save_most_recent = false;
  std::string report_to;         // "tensorboard" (in any list) writes event files
  int64_t threads = 0;           // CPU threads of the kernels; 0: all cores
  std::optional<int64_t> nproc;  // start this many processes, one per GPU of this host
  int64_t zero = 0;              // 1: moments sharded over ranks
  std::string reduce = "fp32";   // how gradients travel between ranks: fp32 or bf16
  std::string optimizer_in_backward = "auto";  // on, off; auto: wherever it can be
  std::string overlap_reduce = "auto";  // beside the backward pass (on), behind it (off), or what is faster
  bool dry_run = false;
  bool eager = false;         // no CUDA graph: kernels are launched one by one
  std::string profile_steps;  // "A-B": these steps run op by op and print where their time goes
  std::optional<std::array<int64_t, 2>> profiled;  // from profile_steps
};

// Parses argv. Prints the help and exits with 0 on --help. Errors: unknown flags name the nearest one; values
// out of range name the flag, the value and what is allowed. Lines for the user ("--local-loss has no effect
// ...") are appended to `notices`.
TrainingOptions parse_training_options(int argc, char** argv, std::vector<std::string>& notices);

// The model that the options ask for, overrides applied.
ClipConfig configured_model(const TrainingOptions& options);

// All options as one JSON object, in the order of the help; for the first record of the log and params.txt.
std::string options_json(const TrainingOptions& options);

}  // namespace switchback
