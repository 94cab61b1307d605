#include "apps/training_options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <sstream>
#include <utility>

#include "apps/flags.h"
#include "apps/open_clip_flags.h"
#include "autograd/checkpoint.h"
#include "data/augment.h"
#include "data/sample_source.h"
#include "runtime/check.h"

namespace switchback {
namespace {

using Json = nlohmann::ordered_json;

// One description of every flag serves three purposes: parsing, the help, and the resolved configuration as
// JSON.
class Flags {
 public:
  Flags(CLI::App* app, Json* json) : app_(app), json_(json) {}

  void group(const char* name) { group_ = name; }

  template <class T>
  CLI::Option* value(const char* name, T& to, const char* help) {
    if (json_) put(name, to);
    if (!app_) return nullptr;
    CLI::Option* option = app_->add_option(name, to, help)->group(group_);
    if constexpr (requires { std::ostringstream() << to; }) option->capture_default_str();
    // A flag given twice: the last one counts, as in argparse, so that scripts can override.
    if constexpr (std::is_same_v<T, std::string> || !requires { to.push_back({}); }) option->take_last();
    return option;
  }
  void flag(const char* name, bool& to, const char* help) {
    if (json_) put(name, to);
    if (app_) app_->add_flag(name, to, help)->group(group_);
  }

 private:
  template <class T>
  void put(std::string name, const T& value) {
    name = name.substr(2, name.find(',') - 2);
    std::replace(name.begin(), name.end(), '-', '_');
    if constexpr (requires { value.has_value(); })
      (*json_)[name] = value ? Json(*value) : Json(nullptr);
    else
      (*json_)[name] = value;
  }

  CLI::App* app_;
  Json* json_;
  std::string group_;
};

void describe(Flags& f, TrainingOptions& o) {
  f.group("Data");
  f.value(
      "--train-data", o.train_data,
      "shards ('data/{0000..0099}.tar', '::' joins sources; also 'pipe:command', https://, s3://, '-') or a "
      "CSV file");
  f.value("--val-data", o.val_data, "validation shards or CSV: retrieval after every --val-frequency epochs");
  f.value("--train-num-samples", o.train_num_samples,
          "samples in an epoch (default: from sizes.json, or by reading the shards' headers)");
  f.value("--val-num-samples", o.val_num_samples, "samples of --val-data to use (default: all)");
  f.value("--dataset-type", o.dataset_type, "webdataset, csv, synthetic or auto (by the file's extension)");
  f.value("--image-key", o.image_key, "suffixes of images in shards, the first one present is used");
  f.value("--text-key", o.text_key, "suffixes of captions in shards");
  f.value("--json-text-key", o.json_text_key,
          "captions from these fields of .json instead; of several one is drawn");
  f.value("--json-text-key-probs", o.json_text_key_probs, "how often each of these fields is drawn");
  f.value("--max-image-pixels", o.max_image_pixels, "larger pictures are left out, before they are decoded");
  f.flag("--fast-decode", o.fast_decode,
         "decode large JPEGs at 1/2, 1/4 or 1/8 of their size (other pixels: docs/data.md)");
  f.flag("--dataset-resampled", o.dataset_resampled, "draw shards with replacement, forever");
  f.value("--train-data-upsampling-factors", o.train_data_upsampling_factors,
          "with --dataset-resampled: how often the shards of each '::' source are drawn, as in 1::2::0.5");
  f.flag("--skip-bad-shards", o.skip_bad_shards,
         "use what precedes the damage in a truncated shard, and warn");
  f.value("--csv-separator", o.csv_separator, "column separator of CSV files (default: tab)");
  f.value("--csv-img-key", o.csv_img_key, "CSV column with the image's path");
  f.value("--csv-caption-key", o.csv_caption_key, "CSV column with the caption");
  f.value(
      "--tokenizer", o.tokenizer,
      "vocabulary file (bpe_simple_vocab_16e6.txt.gz or merges.txt), or 'bytes', which needs no file "
      "(default: 'bytes' for models with 259 tokens, else the file that scripts/fetch_vocabulary.sh gets)");
  f.value("--workers", o.workers, "threads that read and decode, per process");
  f.value("--shuffle-window", o.shuffle_window, "samples that are mixed with each other");
  f.value("--image-mean", o.image_mean, "mean of the pixels by channel, in [0, 1] (default: CLIP's)");
  f.value("--image-std", o.image_std, "standard deviation of the pixels by channel (default: CLIP's)");
  f.value("--aug-cfg", o.aug_cfg,
          "augmentation: scale=(0.9,1.0) ratio=(0.75,1.333) of the random crop; "
          "color_jitter=(0.4,0.4,0.4,0.1) color_jitter_prob=0.8 gray_scale_prob=0.2 of its colours");

  f.group("Model");
  f.value("--model", o.model,
          "a ViT preset (ViT-B-32, ViT-L-14, ..., mini-64), or an open_clip model JSON; required");
  f.value("--pretrained", o.pretrained,
          "weights to start from: a file (.safetensors, .pt, .bin) or a folder of open_clip or transformers");
  f.value("--precision", o.precision,
          "fp32, amp_bf16 (bf16 values, fp32 masters) or auto (fp32 on a CPU, amp_bf16 on a GPU)");
  f.value("--device", o.device, "cpu, cuda or auto (a GPU where this program finds one)");
  f.value("--force-image-size", o.force_image_size, "other image size than the model's");
  f.value("--force-context-length", o.force_context_length, "other text length than the model's");
  f.flag("--force-quick-gelu", o.force_quick_gelu, "x sigmoid(1.702 x) instead of the exact GELU");
  f.value("--force-patch-dropout", o.force_patch_dropout, "share of the patches left out in training");
  f.value("--layer-scale", o.layer_scale,
          "initial value of layer-scale in both towers; 0 is the fix for fp8");
  f.flag("--siglip", o.siglip, "sigmoid loss with a bias instead of softmax");
  f.flag("--lock-image", o.lock_image, "the image tower keeps its weights (LiT)");
  f.value(
      "--lock-image-unlocked-groups", o.lock_image_unlocked_groups,
      "its last groups that train after all: proj, last block with ln_post, block before, ..., embeddings");
  f.flag("--lock-text", o.lock_text, "the text tower keeps its weights");
  f.value("--lock-text-unlocked-layers", o.lock_text_unlocked_layers,
          "its last groups that train after all: projection, last block with ln_final, ..., embeddings");
  f.value("--linear", o.linear,
          "how qkv, out, fc and proj of every block are computed: standard, switchback, switchback-m, "
          "switchback-q, "
          "llm-int8, fp8-sim, switchback-fp8-sim, switchback-fp8 or fp8");
  f.value("--use-bnb-linear", o.use_bnb_linear,
          "open_clip's name for --linear switchback: SwitchBackLinearGlobal");
  f.value("--linear-image", o.linear_image, "the same for the image tower alone");
  f.value("--linear-text", o.linear_text, "the same for the text tower alone");
  f.flag("--grad-checkpointing", o.grad_checkpointing, "the same as --recompute blocks");
  f.value("--recompute", o.recompute,
          "activations that the backward pass computes again instead of keeping them: none, gelu (3/4 of the "
          "memory), cheap (5/8), blocks (block inputs only); gelu:8 only in the first 8 blocks of each tower; "
          "the same results");
  f.flag(
      "--whole-last-block", o.whole_last_block,
      "compute all rows of each tower's last block, also those that nobody reads: slower, the same results");
  f.flag("--whole-text", o.whole_text,
         "compute the whole context of every text, also behind the longest caption of the batch: slower, the "
         "same results (synthetic data: always)");

  f.group("Optimization");
  f.value("--batch-size", o.batch_size, "samples per process and part (see --accum-freq)");
  f.value("--accum-freq", o.accum_freq, "parts of a batch, one loss over all of them");
  f.value("--epochs", o.epochs, "passes over --train-num-samples");
  f.value("--max-steps", o.max_steps, "steps in all, instead of --epochs");
  f.value("--opt", o.opt, "adamw, or stableadamw (AdamW with update clipping)");
  f.value("--lr", o.lr, "highest learning rate");
  f.value("--beta1", o.beta1, "decay of the first moment");
  f.value("--beta2", o.beta2, "decay of the second moment");
  f.value("--beta2-lambda", o.beta2_lambda, "beta2 = 1 - t^-lambda instead of a constant");
  f.value("--eps", o.eps, "epsilon of Adam");
  f.value("--wd", o.wd, "decoupled weight decay");
  f.value("--wd-groups", o.wd_groups,
          "which tensors decay: head (open_clip today) or v3 (open_clip 2-3, the paper)");
  f.value("--wd-exclude", o.wd_exclude, "more names without decay (globs)");
  f.flag("--decay-clipped-rate", o.decay_clipped_rate, "decay with StableAdamW's clipped rate");
  f.value("--grad-clip-norm", o.grad_clip_norm, "clip the gradient to this global L2 norm");
  f.value("--optimizer-in-backward", o.optimizer_in_backward,
          "update each block as soon as its gradients are final, so that blocks share memory for them: on, "
          "off, or auto (wherever it can be: on one rank, without --accum-freq and --grad-clip-norm); the "
          "same results");
  f.value("--warmup", o.warmup, "steps of linear warm-up");
  f.value("--lr-scheduler", o.lr_scheduler, "cosine, const or const-cooldown");
  f.value("--epochs-cooldown", o.epochs_cooldown, "epochs of cool-down (const-cooldown)");
  f.value("--lr-cooldown-end", o.lr_cooldown_end, "rate at the end of the cool-down");
  f.value("--lr-cooldown-power", o.lr_cooldown_power, "1: linear cool-down");
  f.flag("--skip-scheduler", o.skip_scheduler, "constant rate without warm-up");

  f.group("Evaluation");
  f.value("--zeroshot-data", o.zeroshot_data,
          "labelled images for zero-shot classification: shards with .cls, a CLIP_benchmark folder, a folder "
          "with one folder per class, or a list (path, tab, label)");
  f.value("--imagenet-val", o.imagenet_val,
          "the same with ImageNet's class names and templates (scripts/fetch_vocabulary.sh gets them)");
  f.value("--zeroshot-classes", o.zeroshot_classes, "class names, one per line (default: classnames.txt)");
  f.value("--zeroshot-templates", o.zeroshot_templates,
          "templates with {c}, one per line (default: zeroshot_classification_templates.txt)");
  f.value("--zeroshot-label-key", o.zeroshot_label_key, "labels from this field of .json instead of .cls");
  f.value("--val-frequency", o.val_frequency, "epochs between retrieval evaluations; 0: never");
  f.value("--zeroshot-frequency", o.zeroshot_frequency, "epochs between zero-shot evaluations; 0: never");
  f.value("--image-interpolation", o.image_interpolation,
          "of evaluations: bicubic or bilinear (random: bicubic, as in open_clip)");
  f.value("--image-resize-mode", o.image_resize_mode, "of evaluations: shortest, longest or squash");
  f.value("--eval-every-n-steps", o.eval_every_n_steps, "evaluate every n steps too");

  f.group("Run");
  f.value("--logs", o.logs, "folder of all runs; 'none': write nothing");
  f.value("--name", o.name, "name of the run (default: from date and options)");
  f.value("--log-every-n-steps", o.log_every_n_steps, "steps between two lines");
  f.value("--log-metric-every-n-steps", o.log_metric_every_n_steps,
          "steps between two points in TensorBoard (default: the steps of the log)");
  f.value("--report-to", o.report_to, "'tensorboard' writes event files");
  f.value("--seed", o.seed, "seed of weights, order, crops and patch dropout");
  f.value("--resume", o.resume, "'latest', or a checkpoint folder");
  f.value("--save-frequency", o.save_frequency, "epochs between checkpoints; 0: only at the end");
  f.value("--save-every-n-steps", o.save_every_n_steps, "steps between checkpoints");
  f.value("--keep-last-k", o.keep_last_k, "keep only the newest checkpoints");
  f.flag("--delete-previous-checkpoint", o.delete_previous_checkpoint, "the same as --keep-last-k 1");
  f.flag("--save-most-recent", o.save_most_recent, "save after every epoch, whatever --save-frequency says");
  f.value("--threads", o.threads, "CPU threads of the kernels; 0: all cores");
  f.flag("--eager", o.eager, "launch the kernels of a step one by one instead of as one CUDA graph");
  f.value("--profile-steps", o.profile_steps,
          "A-B: run these steps op by op and print where their time goes (with NVTX ranges for Nsight)");
  f.value("--nproc", o.nproc, "run on this many GPUs of this host: starts one process for each");
  f.value("--zero", o.zero, "1: each rank keeps the optimizer's moments of its share of the parameters only");
  f.value("--reduce", o.reduce, "how gradients travel between ranks: fp32 or bf16 (half the bytes)");
  f.value("--overlap-reduce", o.overlap_reduce,
          "gradients travel beside the backward pass (on), behind it (off), or where a measurement at the start says "
          "(auto)");
  f.flag("--dry-run", o.dry_run, "print model, parameters, FLOPs and steps, then stop");
}

// The numbers of "(0.9, 1.0)", "0.9,1.0" or "[0.9 1.0]"; none where something else stands among them.
std::vector<double> parse_numbers(std::string text) {
  for (char& c : text)
    if (c == '(' || c == ')' || c == '[' || c == ']' || c == ',') c = ' ';
  std::istringstream in(text);
  std::vector<double> numbers;
  for (double number = 0; in >> number;) numbers.push_back(number);
  if (!in.eof()) numbers.clear();
  return numbers;
}

std::array<double, 2> parse_pair(const std::string& item, const std::string& text) {
  const std::vector<double> pair = parse_numbers(text);
  if (pair.size() != 2 || !(pair[0] > 0) || pair[0] > pair[1])
    fail("--aug-cfg ", item, ": expected two positive numbers in ascending order, as in scale=(0.9,1.0)");
  return {pair[0], pair[1]};
}

double parse_probability(const std::string& item, const std::string& text) {
  const std::vector<double> number = parse_numbers(text);
  if (number.size() != 1 || !(number[0] >= 0) || number[0] > 1)
    fail("--aug-cfg ", item, ": expected a probability from 0 to 1");
  return number[0];
}

// Strengths of brightness, contrast, saturation and hue.
std::array<double, 4> parse_color_jitter(const std::string& item, const std::string& text) {
  const std::vector<double> n = parse_numbers(text);
  if (n.size() != 4 || *std::min_element(n.begin(), n.end()) < 0 || n[3] > 0.5)
    fail("--aug-cfg ", item, ": expected brightness, contrast, saturation (0 or more) and hue (0 to 0.5), ",
         "as in color_jitter=(0.4,0.4,0.4,0.1)");
  return {n[0], n[1], n[2], n[3]};
}

void parse_augmentation(TrainingOptions& o) {
  for (const std::string& item : o.aug_cfg) {
    const size_t equals = item.find('=');
    const std::string key = item.substr(0, equals);
    const std::string text = equals == std::string::npos ? "" : item.substr(equals + 1);
    if (key == "scale")
      o.crop_scale = parse_pair(item, text);
    else if (key == "ratio")
      o.crop_ratio = parse_pair(item, text);
    else if (key == "color_jitter")
      o.color_jitter = parse_color_jitter(item, text);
    else if (key == "color_jitter_prob")
      o.color_jitter_prob = parse_probability(item, text);
    else if (key == "gray_scale_prob")
      o.gray_scale_prob = parse_probability(item, text);
    else
      fail("--aug-cfg ", item,
           " is not supported; supported are scale, ratio, color_jitter, color_jitter_prob and "
           "gray_scale_prob");
  }
  if (o.crop_scale[1] > 1)
    fail("--aug-cfg scale: a crop cannot be larger than the image, got ", o.crop_scale[1]);
}

template <class T>
void at_least(const char* flag, const T& value, double low) {
  if (!(static_cast<double>(value) >= low)) fail(flag, " must be at least ", low, ", got ", value);
}
template <class T>
void at_least(const char* flag, const std::optional<T>& value, double low) {
  if (value) at_least(flag, *value, low);
}
void finite(const char* flag, double value) {
  if (!std::isfinite(value)) fail(flag, " must be a finite number, got ", value);
}
void one_of(const char* flag, const std::string& value, const std::vector<std::string>& allowed) {
  if (std::find(allowed.begin(), allowed.end(), value) != allowed.end()) return;
  std::string list;
  for (const std::string& a : allowed) list += (list.empty() ? "" : ", ") + a;
  fail(flag, " ", value, " is unknown: use one of ", list);
}

// "1::2::0.5"
std::vector<double> parse_factors(const std::string& text) {
  std::vector<double> factors;
  for (size_t start = 0; start <= text.size();) {
    const size_t end = std::min(text.find("::", start), text.size());
    const std::string part = text.substr(start, end - start);
    std::istringstream in(part);
    double factor = -1;
    char rest;
    if (!(in >> factor) || in >> rest || !std::isfinite(factor) || factor < 0)
      fail("--train-data-upsampling-factors ", text, ": '", part,
           "' is not a number from 0 (expected 1::2::0.5)");
    factors.push_back(factor);
    start = end + 2;
  }
  if (*std::max_element(factors.begin(), factors.end()) == 0)
    fail("--train-data-upsampling-factors ", text, ": one of them must be above 0");
  return factors;
}

// "a::b" has 2 sources.
size_t source_count(const std::string& data) {
  size_t count = 1;
  for (size_t at = 0; (at = data.find("::", at)) != std::string::npos; at += 2) ++count;
  return count;
}

void check_data(TrainingOptions& o) {
  at_least("--max-image-pixels", o.max_image_pixels, 1);
  if (!o.json_text_key_probs.empty() && o.json_text_key_probs.size() != o.json_text_key.size())
    fail("--json-text-key-probs has ", o.json_text_key_probs.size(), " numbers for ", o.json_text_key.size(),
         " fields of --json-text-key");
  double sum = 0;
  for (const double probability : o.json_text_key_probs) {
    at_least("--json-text-key-probs", probability, 0);
    sum += probability;
  }
  if (!o.json_text_key_probs.empty() && !(sum > 0 && std::isfinite(sum)))
    fail("--json-text-key-probs: one of them must be above 0");
  for (const auto& [flag, key] : {std::pair{"--image-key", &o.image_key}, {"--text-key", &o.text_key}})
    if (suffixes_of(*key).empty()) fail(flag, " is empty: expected suffixes like jpg;png");
  if (o.image_interpolation == "random") o.image_interpolation = "bicubic";  // means timm's training crops
  parse_interpolation(o.image_interpolation);
  parse_resize_mode(o.image_resize_mode);
  if (!o.train_data_upsampling_factors.empty()) {
    if (!o.dataset_resampled) fail("--train-data-upsampling-factors needs --dataset-resampled");
    o.upsampling_factors = parse_factors(o.train_data_upsampling_factors);
    const size_t sources = source_count(o.train_data);
    if (o.upsampling_factors.size() != sources)
      fail("--train-data-upsampling-factors has ", o.upsampling_factors.size(), " numbers, --train-data has ",
           sources, sources == 1 ? " source" : " sources", " ('::' separates both)");
  }
  if (!o.imagenet_val.empty() && !o.zeroshot_data.empty())
    fail("--imagenet-val and --zeroshot-data exclude each other: a run evaluates one labelled set");
}

void check(TrainingOptions& o, std::vector<std::string>& notices) {
  if (o.model.empty())
    fail(
        "--model is missing: open_clip's default, RN50, is not supported; add --model ViT-B-32, or another "
        "ViT");
  at_least("--batch-size", o.batch_size, 1);
  at_least("--accum-freq", o.accum_freq, 1);
  at_least("--epochs", o.epochs, 1);
  at_least("--max-steps", o.max_steps, 1);
  at_least("--workers", o.workers, 0);
  if (o.workers > 1024) fail("--workers must be at most 1024, got ", o.workers);
  at_least("--shuffle-window", o.shuffle_window, 1);
  at_least("--train-num-samples", o.train_num_samples, 1);
  at_least("--val-num-samples", o.val_num_samples, 1);
  at_least("--warmup", o.warmup, 0);
  at_least("--lr", o.lr, 0);
  at_least("--wd", o.wd, 0);
  at_least("--log-every-n-steps", o.log_every_n_steps, 1);
  at_least("--log-metric-every-n-steps", o.log_metric_every_n_steps, 1);
  at_least("--save-frequency", o.save_frequency, 0);
  at_least("--save-every-n-steps", o.save_every_n_steps, 1);
  at_least("--eval-every-n-steps", o.eval_every_n_steps, 1);
  at_least("--keep-last-k", o.keep_last_k, 1);
  at_least("--val-frequency", o.val_frequency, 0);
  at_least("--zeroshot-frequency", o.zeroshot_frequency, 0);
  at_least("--lock-image-unlocked-groups", o.lock_image_unlocked_groups, 0);
  at_least("--lock-text-unlocked-layers", o.lock_text_unlocked_layers, 0);
  at_least("--threads", o.threads, 0);
  at_least("--nproc", o.nproc, 1);
  if (o.zero != 0 && o.zero != 1) fail("--zero ", o.zero, ": 0 (off) or 1");
  one_of("--reduce", o.reduce, {"fp32", "bf16"});
  one_of("--optimizer-in-backward", o.optimizer_in_backward, {"auto", "on", "off"});
  one_of("--overlap-reduce", o.overlap_reduce, {"auto", "on", "off"});
  for (double beta : {o.beta1, o.beta2})
    if (!(beta >= 0 && beta < 1)) fail("--beta1 and --beta2 must lie in [0, 1), got ", beta);
  if (!(o.eps > 0)) fail("--eps must be positive, got ", o.eps);
  one_of("--opt", o.opt, {"adamw", "stableadamw"});
  one_of("--dataset-type", o.dataset_type, {"auto", "webdataset", "csv", "synthetic"});
  if (o.grad_checkpointing) o.recompute = "blocks";
  find_recompute(o.recompute);  // fails when it is not one
  one_of("--lr-scheduler", o.lr_scheduler, {"cosine", "const", "const-cooldown"});
  one_of("--wd-groups", o.wd_groups, {"head", "v3"});
  o.precision = precision_of_open_clip(o.precision, notices);
  one_of("--precision", o.precision, {"auto", "fp32", "amp_bf16"});
  if (!o.use_bnb_linear.empty()) {
    const std::string recipe = recipe_of_bitsandbytes(o.use_bnb_linear);
    if (!o.linear.empty() && o.linear != recipe)
      fail("--use-bnb-linear ", o.use_bnb_linear, " means --linear ", recipe, ", but --linear ", o.linear,
           " is given");
    o.linear = recipe;
  }
  one_of("--device", o.device, {"auto", "cpu", "cuda"});
  if (o.lr_scheduler == "const-cooldown" && !o.epochs_cooldown)
    fail("--lr-scheduler const-cooldown needs --epochs-cooldown");
  for (const auto* values : {&o.image_mean, &o.image_std})
    if (!values->empty() && values->size() != 3)
      fail("--image-mean and --image-std take 3 numbers, got ", values->size());
  if (o.train_data.empty() && o.dataset_type != "synthetic" && !o.dry_run)
    fail("--train-data is missing (shards or a CSV file); or use --dataset-type synthetic");
  if (o.dataset_type == "synthetic" && !o.train_num_samples)
    fail("--dataset-type synthetic needs --train-num-samples");
  for (const auto& [flag, values] : {std::pair{"--image-mean", &o.image_mean}, {"--image-std", &o.image_std}})
    for (double value : *values) finite(flag, value);
  if (o.layer_scale) finite("--layer-scale", *o.layer_scale);
  for (double deviation : o.image_std)
    if (!(deviation > 0)) fail("--image-std must be positive, got ", deviation, ": pixels are divided by it");
  for (const auto& [flag, value] : {std::pair{"--lr", o.lr}, {"--wd", o.wd}, {"--eps", o.eps}})
    finite(flag, value);
  if (o.resume == "latest" && o.name.empty() && o.logs != "none")
    fail("--resume latest needs the --name of the run: a name made from date and options is new every time");
  if (!o.report_to.empty() && o.report_to != "all" && o.report_to.find("tensorboard") == std::string::npos)
    notices.push_back("--report-to " + o.report_to +
                      " has no effect: only tensorboard is supported; train.jsonl has the same numbers");
  for (const auto& [flag, given, needed, there] :
       {std::tuple{"--lock-image-unlocked-groups", o.lock_image_unlocked_groups > 0, "--lock-image",
                   o.lock_image},
        {"--lock-text-unlocked-layers", o.lock_text_unlocked_layers > 0, "--lock-text", o.lock_text},
        {"--decay-clipped-rate", o.decay_clipped_rate, "--opt stableadamw", o.opt == "stableadamw"}})
    if (given && !there) notices.push_back(concat(flag, " has no effect without ", needed));
  if (!o.profile_steps.empty()) {
    long long first = 0, last = 0;
    char rest = 0;
    if (std::sscanf(o.profile_steps.c_str(), "%lld-%lld%c", &first, &last, &rest) != 2 || first < 0 ||
        last < first)
      fail("--profile-steps is A-B, steps counted from 0 (10-14), got ", o.profile_steps);
    o.profiled = {first, last};
  }
  if (o.csv_separator == "\\t") o.csv_separator = "\t";
  if (o.delete_previous_checkpoint) o.keep_last_k = 1;
  if (o.workers == 0) o.workers = 1;
  parse_augmentation(o);
  check_data(o);
}

}  // namespace

TrainingOptions parse_training_options(int argc, char** argv, std::vector<std::string>& notices) {
  TrainingOptions o;
  CLI::App app(
      "clip_train: trains a CLIP on image-text pairs.\n"
      "Flags carry open_clip's names; --flag=value and unambiguous prefixes work.");
  app.get_formatter()->column_width(34);
  Flags flags(&app, nullptr);
  describe(flags, o);
  add_open_clip_flags(app);
  if (!parse_flags(app, argc, argv)) std::exit(0);
  answer_open_clip_flags(app, notices);
  check(o, notices);
  return o;
}

ClipConfig configured_model(const TrainingOptions& o) {
  ClipConfig c = find_model(o.model);
  if (o.force_image_size) c.vision.image_size = *o.force_image_size;
  if (o.force_context_length) c.text.context_length = *o.force_context_length;
  if (o.force_quick_gelu) c.quick_gelu = true;
  if (o.force_patch_dropout) c.vision.patch_dropout = *o.force_patch_dropout;
  if (o.layer_scale) c.vision.layer_scale = c.text.layer_scale = *o.layer_scale;
  if (!o.linear.empty()) c.vision.linear = c.text.linear = o.linear;
  if (!o.linear_image.empty()) c.vision.linear = o.linear_image;
  if (!o.linear_text.empty()) c.text.linear = o.linear_text;
  c.whole_last_block = o.whole_last_block;
  // Synthetic data measure speed; their two-word captions would flatter it.
  c.whole_text = o.whole_text || o.dataset_type == "synthetic";
  if (o.siglip && !c.init_logit_bias) {
    c.init_logit_scale = 2.302585092994046;  // ln 10
    c.init_logit_bias = -10;
  }
  if (o.tokenizer == "bytes") c.text.vocab_size = 259;
  check_config(c);
  return c;
}

std::string options_json(const TrainingOptions& options) {
  TrainingOptions copy = options;
  Json json;
  Flags flags(nullptr, &json);
  describe(flags, copy);
  // A path may hold bytes that are no UTF-8; a record must not fail for it.
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace switchback
