// clip_train: trains a CLIP on image-text pairs. Reads top to bottom: options, model, data, one step, the
// loop around it with its log, evaluations and checkpoints. docs/one_step.md walks through a step from here
// to a kernel and back.
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <memory>
#include <optional>
#include <vector>

#include "apps/checkpoint.h"
#include "apps/evaluation_data.h"
#include "apps/first_non_finite.h"
#include "apps/run_folder.h"
#include "apps/run_setup.h"
#include "apps/training_log.h"
#include "apps/training_options.h"
#include "autograd/checkpoint.h"
#include "data/loader.h"
#include "data/sample_source.h"
#include "data/tokenizer.h"
#include "kernels/transfer.h"
#include "models/clip.h"
#include "models/flops.h"
#include "optim/schedule.h"
#include "optim/stable_adamw.h"
#include "runtime/parallel.h"

namespace switchback {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// SIGTERM and SIGUSR1 (SLURM's warning before a job ends), SIGINT: finish the step, save, exit with 0. A
// second signal ends the program at once: the step may be waiting for a disk that is gone.
volatile std::sig_atomic_t stop_signal = 0;
void on_stop_signal(int signal) {
  stop_signal = signal;
  for (int other : {SIGTERM, SIGUSR1, SIGINT}) std::signal(other, SIG_DFL);
}

// open_clip's automatic name: date, model, learning rate, batch, workers, precision
std::string run_name(const TrainingOptions& o) {
  if (!o.name.empty()) return o.name;
  const std::time_t t = std::time(nullptr);
  char date[32];
  std::strftime(date, sizeof date, "%Y_%m_%d-%H_%M_%S", std::localtime(&t));
  std::string name = concat(date, "-model_", o.model, "-lr_", o.lr, "-b_", o.batch_size, "-j_", o.workers,
                            "-p_", o.precision);
  for (char& c : name)
    if (c == '/') c = '-';
  return name;
}

AdamWOptions optimizer_options(const TrainingOptions& o) {
  AdamWOptions a;
  a.beta1 = o.beta1;
  a.beta2 = o.beta2;
  a.beta2_lambda = o.beta2_lambda.value_or(0);
  a.weight_decay = o.wd;
  a.decay_rule = decay_rule(o.wd_groups);
  a.undecayed = o.wd_exclude;
  a.update.epsilon = o.eps;
  a.update.clip_update = o.opt == "stableadamw";
  a.update.decay_clipped_rate = o.decay_clipped_rate;
  a.update.max_gradient_norm = o.grad_clip_norm.value_or(0);
  return a;
}

// How long training goes on, in steps. An epoch is rounded up to whole batches, as open_clip's is (there to a
// multiple of --workers besides: its processes get equal shares; our threads need none).
struct Plan {
  int64_t global_batch = 0;  // samples per step: batch size x parts
  int64_t steps_per_epoch = 0;
  int64_t total_steps = 0;
};

Plan make_plan(const TrainingOptions& o, int64_t samples) {
  Plan p;
  p.global_batch = o.batch_size * o.accum_freq;
  const int64_t batches = (samples + o.batch_size - 1) / o.batch_size;
  p.steps_per_epoch = batches / o.accum_freq;
  if (p.steps_per_epoch == 0)
    fail("an epoch of ", samples, " samples has ", batches, " batches of ", o.batch_size,
         ", fewer than --accum-freq ", o.accum_freq, ": use a smaller batch or fewer parts");
  p.total_steps = o.max_steps.value_or(p.steps_per_epoch * o.epochs);
  return p;
}

Schedule make_schedule(const TrainingOptions& o, const Plan& plan) {
  Schedule s;
  s.kind = o.skip_scheduler ? ScheduleKind::skip : schedule_kind(o.lr_scheduler);
  s.learning_rate = o.lr;
  s.warmup_steps = o.warmup;
  s.total_steps = plan.total_steps;
  s.cooldown_steps = o.epochs_cooldown.value_or(0) * plan.steps_per_epoch;
  s.cooldown_end = o.lr_cooldown_end;
  s.cooldown_power = o.lr_cooldown_power;
  s.check();
  return s;
}

// The forward pass of one step, up to the loss. images (B, S, S, 3), tokens (B, T); parts > 1 splits the
// batch: each part's activations are given up and computed again in the backward pass (checkpoint), the loss
// sees all features.
Variable forward(const Clip& clip, const Tensor& images, const Tensor& tokens, int64_t parts,
                 const Clip::Options& options) {
  if (parts == 1) return clip.loss(clip.encode_image(images, options), clip.encode_text(tokens, options));
  const int64_t size = images.shape()[0] / parts;
  std::vector<Variable> image_features, text_features;  // (size, E) each
  for (int64_t part = 0; part < parts; ++part) {
    Tensor part_images = images.slice(part * size, size), part_tokens = tokens.slice(part * size, size);
    std::optional<PatchDropout> dropout;  // by value: the closure outlives this call
    if (options.dropout) dropout = *options.dropout, dropout->first_sample += part * size;
    image_features.push_back(checkpoint({}, [&clip, part_images, options, dropout](const Variable&) {
      Clip::Options o = options;
      o.dropout = dropout ? &*dropout : nullptr;
      return clip.encode_image(part_images, o);
    }));
    text_features.push_back(checkpoint({}, [&clip, part_tokens, options](const Variable&) {
      return clip.encode_text(part_tokens, options);
    }));
  }
  return clip.loss(concat_rows(image_features), concat_rows(text_features));
}

// Weights, moments and progress as `checkpoint` has them, and what is odd about going on from there.
TrainingProgress go_on_from(const std::string& checkpoint, const std::string& checkpoints, const Plan& plan,
                            const TrainingOptions& options, ParameterArena& arena, AdamW& optimizer,
                            TrainingLog& log) {
  TrainingProgress progress;
  try {
    progress = load_checkpoint(checkpoint, arena, optimizer);
  } catch (const Error& error) {
    const std::string older = options.resume == "latest" ? latest_checkpoint(checkpoints, checkpoint) : "";
    if (older.empty()) throw;
    fail(error.what(), "; if it is damaged, remove ", checkpoint, ": --resume latest goes on from ", older,
         " then");
  }
  log.info(concat("resuming from ", checkpoint, " at step ", progress.step));
  if (progress.seed != options.seed)
    log.warning(concat("the checkpoint was made with --seed ", progress.seed, ": going on with that one"));
  if (progress.samples_seen != progress.step * plan.global_batch)
    log.warning(concat("the checkpoint's ", progress.step, " steps saw ", progress.samples_seen,
                       " samples, not ", plan.global_batch,
                       " each: data go on where they stopped; epochs, --max-steps and the learning "
                       "rate go by steps"));
  const std::filesystem::path newest = latest_checkpoint(checkpoints);
  if (newest.filename() > checkpoint_name(progress.step))
    log.warning(concat(newest.string(),
                       " is of a later step: --resume latest would take that one; remove it if this "
                       "run replaces it"));
  return progress;
}

void print_summary(TrainingLog& log, const TrainingOptions& o, const ClipConfig& config, const Plan& plan,
                   int64_t samples, const Schedule& schedule) {
  const ClipFlops flops = nominal_flops(config);
  log.info(concat("Model ", config.name, ": ", parameter_count(config), " parameters, ", flops.image / 1e9,
                  " + ", flops.text / 1e9, " GFLOP per image and text, ", flops.training() / 1e9,
                  " GFLOP per training pair"));
  log.info(concat("Data: ", samples, " samples per epoch; batch ", o.batch_size, " x ", o.accum_freq,
                  " parts = ", plan.global_batch, " per step; ", plan.steps_per_epoch, " steps per epoch, ",
                  plan.total_steps, " in all"));
  log.info(concat("Optimizer ", o.opt, ": lr ", o.lr, ", warm-up ", schedule.warmup_steps, " steps, beta ",
                  o.beta1, " ", o.beta2, ", eps ", o.eps, ", wd ", o.wd, "; a batch at chance has loss ln ",
                  plan.global_batch, " = ", std::log(static_cast<double>(plan.global_batch))));
  if (schedule.kind != ScheduleKind::skip && schedule.warmup_steps >= plan.total_steps)
    log.warning(concat("warm-up (--warmup ", schedule.warmup_steps, ") is not shorter than the run (",
                       plan.total_steps, " steps): the learning rate never reaches --lr"));
}

// The run itself, from the data to the last checkpoint.
int train(const TrainingOptions& options, const ClipConfig& config, Device device, DType dtype,
          const std::shared_ptr<const Tokenizer>& tokenizer, const RunFolder& folder, TrainingLog& log) {
  // ---- data ----
  const Warn warn = [&log](const std::string& line) { log.warning(line); };
  const std::shared_ptr<SampleSource> source = open_training_data(options, config, warn);
  const int64_t samples = samples_of_epoch(options, source.get());
  const Plan plan = make_plan(options, samples);
  const Schedule schedule = make_schedule(options, plan);
  print_summary(log, options, config, plan, samples, schedule);
  if (options.dry_run) {
    const DryRun run{plan.global_batch, plan.total_steps, device, dtype};
    report_dry_run(options, config, run, [&log](const std::string& line) { log.info(line); });
    return 0;
  }

  // ---- model and optimizer ----
  ParameterArena arena(dtype, device, static_cast<uint64_t>(options.seed));
  Clip clip(arena, config);
  arena.allocate();
  prepare_parameters(options, config, arena, [&log](const std::string& line) { log.info(line); });
  AdamW optimizer(arena, optimizer_options(options));

  TrainingProgress progress;
  progress.seed = options.seed;
  progress.options_json = options_json(options);
  if (!options.resume.empty()) {
    const std::string checkpoint =
        options.resume == "latest" ? latest_checkpoint(folder.checkpoints()) : options.resume;
    if (checkpoint.empty()) {
      log.info("no checkpoint to resume from: starting afresh");  // job scripts always pass --resume latest
    } else {
      progress = go_on_from(checkpoint, folder.checkpoints(), plan, options, arena, optimizer, log);
      progress.options_json = options_json(options);
    }
  }
  LoaderOptions loader_options = training_loader(options, config, plan.global_batch, warn);
  loader_options.seed = static_cast<uint64_t>(progress.seed);
  if (!progress.loader.empty()) loader_options.start = StreamState::parse(progress.loader);
  Loader loader(source, tokenizer, loader_options);

  const EvaluationData evaluation_data(evaluation_options(options), config, tokenizer, warn);

  // ---- the loop ----
  Kernels& k = kernels(device);
  const PixelNormalization normalization = pixel_normalization(options);
  Tensor step_on_device({}, DType::i64, device);
  const PatchDropout dropout{static_cast<uint64_t>(progress.seed), step_on_device, 0};
  const Clip::Options training{normalization, find_recompute(options.recompute),
                               config.vision.patch_dropout > 0 ? &dropout : nullptr};
  const Clip::Options evaluating{normalization, Recompute::none, nullptr};

  auto save = [&] {
    if (folder.path().empty()) return;
    progress.loader = loader.state().to_string();
    const std::string path = save_checkpoint(folder.checkpoints(), config, normalization, arena, optimizer,
                                             progress, options.keep_last_k.value_or(0));
    log.info("saved " + path);
    log.write_picture();
  };
  auto evaluate = [&](bool retrieval, bool zero_shot) {
    const double start = now();
    std::optional<Retrieval> r;
    std::optional<ZeroShot> z;
    if (retrieval) r = evaluation_data.retrieval(clip, evaluating, device);
    if (zero_shot) z = evaluation_data.zero_shot(clip, evaluating, device);
    if (r || z) log.evaluation(progress.epoch, progress.step, r, z, now() - start);
  };
  int64_t saved_at = progress.step;
  // What fails between two steps (damaged data, an evaluation) must not cost the steps since the last
  // checkpoint.
  auto or_save = [&](const auto& work) {
    try {
      work();
    } catch (...) {
      if (saved_at != progress.step) save();
      throw;
    }
  };
  for (int signal : {SIGTERM, SIGUSR1, SIGINT}) std::signal(signal, on_stop_signal);

  log.start(progress.step, progress.options_json, model_config_json(config));
  Batch batch;
  while (progress.step < plan.total_steps && !stop_signal) {
    const int64_t step = progress.step;
    const double start = now();
    or_save([&] { loader.next(batch); });
    const double data_seconds = now() - start;

    // One step: forward, backward, update.
    k.upload(step_on_device, Tensor::of<int64_t>({}, {step}));
    const Tensor images = to_device(batch.images, device);  // (B, S, S, 3) u8
    const Tensor tokens = to_device(batch.tokens, device);  // (B, T) i32
    arena.begin_backward();
    const Variable loss = forward(clip, images, tokens, options.accum_freq, training);
    const double loss_value = number(loss.value());
    const double logit_scale =
        std::exp(number(clip.logit_scale().value()));  // of this loss, as open_clip logs it
    if (!std::isfinite(loss_value))
      fail("the loss is ", std::isnan(loss_value) ? "NaN" : "infinite", " at step ", step,
           "; first tensor that is not finite: ",
           first_non_finite(arena, [&] { forward(clip, images, tokens, options.accum_freq, training); }),
           ". Nothing was saved since; try a lower --lr, a longer --warmup, --opt stableadamw or "
           "--grad-clip-norm 1, "
           "and go on with --resume latest");
    tape().backward(loss);
    arena.finish_backward();
    optimizer.step(schedule.rate(step));
    clip.clamp_logit_scale();

    // The log.
    ++progress.step;
    progress.samples_seen += plan.global_batch;
    progress.epoch = progress.step / plan.steps_per_epoch;
    const OptimizerReport& report = optimizer.report();
    StepRecord record;
    record.step = step;
    record.epoch = step / plan.steps_per_epoch;
    record.step_in_epoch = step % plan.steps_per_epoch;
    record.steps_per_epoch = plan.steps_per_epoch;
    record.total_steps = plan.total_steps;
    record.global_batch = plan.global_batch;
    record.samples_seen = progress.samples_seen;
    record.loss = loss_value;
    record.learning_rate = schedule.rate(step);
    record.logit_scale = logit_scale;
    record.gradient_norm = report.gradient_norm;
    record.visual_gradient_norm = report.visual_gradient_norm;
    record.text_gradient_norm = report.text_gradient_norm;
    record.largest_rms = report.largest_rms;
    record.largest_rms_name = report.largest_rms_name;
    record.patch_embedding_rms = optimizer.rms_of("visual.conv1.weight");
    record.skipped = report.skipped;
    record.data_seconds = data_seconds;
    record.step_seconds = now() - start;
    log.step(record);

    // Evaluations and checkpoints, at the end of epochs and at their own intervals.
    const bool last = progress.step == plan.total_steps;
    const bool epoch_ends = progress.step % plan.steps_per_epoch == 0 || last;
    auto due = [&](int64_t frequency) {
      return frequency > 0 && epoch_ends && (progress.epoch % frequency == 0 || last);
    };
    const bool by_step = options.eval_every_n_steps && progress.step % *options.eval_every_n_steps == 0;
    if (epoch_ends) log.end_epoch(record.epoch);
    const bool save_now = last || (epoch_ends && options.save_most_recent) || due(options.save_frequency) ||
                          (options.save_every_n_steps && progress.step % *options.save_every_n_steps == 0);
    if (save_now) save(), saved_at = progress.step;
    or_save(
        [&] { evaluate(by_step || due(options.val_frequency), by_step || due(options.zeroshot_frequency)); });
  }

  if (stop_signal) {
    if (saved_at != progress.step) save();
    log.info(concat("stopped by signal ", static_cast<int>(stop_signal), " after step ", progress.step,
                    "; --resume latest goes on"));
  } else {
    log.write_picture();
    const LoaderStatistics statistics = loader.statistics();
    for (const auto& [reason, count] : statistics.reasons)
      log.info(concat("data: ", count, " samples: ", reason));
    log.info("training is complete");
  }
  return 0;
}

int run(int argc, char** argv) {
  // ---- options ----
  std::vector<std::string> notices;
  const TrainingOptions options = parse_training_options(argc, argv, notices);
  if (options.threads > 0) set_cpu_threads(static_cast<int>(options.threads));
  const ClipConfig config = configured_model(options);
  const bool on_gpu = options.device == "cuda" || (options.device == "auto" && cuda_available());
  const Device device = on_gpu ? Device{Device::cuda, 0} : cpu_device;
  const bool wide = options.precision == "fp32" || (options.precision == "auto" && !on_gpu);
  const DType dtype = wide ? DType::f32 : DType::bf16;

  const bool bytes = options.tokenizer.empty() && config.text.vocab_size == 259;
  std::shared_ptr<const Tokenizer> tokenizer = make_tokenizer(
      bytes ? "bytes" : options.tokenizer, static_cast<int32_t>(config.text.context_length));
  if (tokenizer->vocabulary_size() > config.text.vocab_size)
    fail("the tokenizer has ", tokenizer->vocabulary_size(), " ids, model ", config.name, " only ",
         config.text.vocab_size, ": choose another --tokenizer or --model");

  RunFolder folder(options.dry_run ? "none" : options.logs, run_name(options), !options.resume.empty());
  TrainingLog log({folder.path(), options.log_every_n_steps, nominal_flops(config).training(),
                   options.report_to.find("tensorboard") != std::string::npos || options.report_to == "all"});
  for (const std::string& notice : notices) log.warning(notice);

  try {
    return train(options, config, device, dtype, tokenizer, folder, log);
  } catch (const std::exception& error) {
    log.error(
        concat("clip_train: ", error.what()));  // stderr, and out.log, where people look the next morning
    return 1;
  }
}

}  // namespace
}  // namespace switchback

int main(int argc, char** argv) {
  try {
    return switchback::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "clip_train: %s\n", error.what());
    return 1;
  }
}
