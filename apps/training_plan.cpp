#include "apps/training_plan.h"

#include <cmath>
#include <ctime>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "distributed/rendezvous.h"
#include "models/flops.h"
#include "models/text_length.h"

namespace switchback {

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

std::vector<std::pair<std::string, std::string>> agreement(const TrainingOptions& options) {
  std::vector<std::pair<std::string, std::string>> all{{"the program", program_fingerprint()}};
  const auto json = nlohmann::ordered_json::parse(options_json(options));
  for (const auto& [name, value] : json.items()) {
    if (name == "workers" || name == "threads" || name == "nproc") continue;
    std::string flag = "--" + name;
    for (char& c : flag)
      if (c == '_') c = '-';
    all.emplace_back(flag, value.is_string() ? value.get<std::string>() : value.dump());
  }
  return all;
}

Plan make_plan(const TrainingOptions& o, int64_t samples, int64_t ranks) {
  Plan p;
  p.ranks = ranks;
  p.global_batch = o.batch_size * o.accum_freq * ranks;
  const int64_t row = o.batch_size * ranks, batches = (samples + row - 1) / row;
  p.steps_per_epoch = batches / o.accum_freq;
  if (p.steps_per_epoch == 0)
    fail("an epoch of ", samples, " samples has ", batches, " batches of ", row, ", fewer than --accum-freq ",
         o.accum_freq, ": use a smaller batch or fewer parts");
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

namespace {

// What a step does not compute, because nobody reads it.
std::string what_is_left_out(const ClipConfig& c) {
  const bool rows = !c.whole_last_block, text = text_may_stop(c);
  return concat(
      "Left out: ", rows ? "rows of the last blocks that nobody reads (--whole-last-block)" : "",
      rows && text ? ", " : "", text ? "text behind a batch's longest caption (--whole-text)" : "",
      rows || text ? "" : "nothing", "; TFLOP/s count all rows and ", c.text.context_length, " tokens",
      !text && !c.whole_text
          ? concat("; tokens share a scale with --linear ", c.text.linear, ", so all of a text is computed")
          : "");
}

}  // namespace

void print_summary(TrainingLog& log, const TrainingOptions& o, const ClipConfig& config, const Plan& plan,
                   int64_t samples, const Schedule& schedule) {
  const ClipFlops flops = nominal_flops(config);
  log.info(concat("Model ", config.name, ": ", parameter_count(config), " parameters, ", flops.image / 1e9,
                  " + ", flops.text / 1e9, " GFLOP per image and text, ", flops.training() / 1e9,
                  " GFLOP per training pair"));
  log.info(what_is_left_out(config));
  log.info(concat("Data: ", samples, " samples per epoch; batch ", o.batch_size, " x ", o.accum_freq,
                  " parts", plan.ranks > 1 ? concat(" x ", plan.ranks, " ranks") : std::string(), " = ",
                  plan.global_batch, " per step; ", plan.steps_per_epoch, " steps per epoch, ",
                  plan.total_steps, " in all"));
  log.info(concat("Optimizer ", o.opt, ": lr ", o.lr, ", warm-up ", schedule.warmup_steps, " steps, beta ",
                  o.beta1, " ", o.beta2, ", eps ", o.eps, ", wd ", o.wd, "; a batch at chance has loss ln ",
                  plan.global_batch, " = ", std::log(static_cast<double>(plan.global_batch))));
  if (schedule.kind != ScheduleKind::skip && schedule.warmup_steps >= plan.total_steps)
    log.warning(concat("warm-up (--warmup ", schedule.warmup_steps, ") is not shorter than the run (",
                       plan.total_steps, " steps): the learning rate never reaches --lr"));
}

}  // namespace switchback
