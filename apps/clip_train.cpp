// clip_train: trains a CLIP on image-text pairs. Reads top to bottom: options, model, data, the loop around
// TrainingStep with its log, evaluations and checkpoints. docs/one_step.md walks through a step from here to
// a kernel and back.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <deque>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "apps/evaluation_data.h"
#include "apps/first_non_finite.h"
#include "apps/memory_plan.h"
#include "apps/run_folder.h"
#include "apps/run_setup.h"
#include "apps/training_plan.h"
#include "apps/training_step.h"
#include "autograd/op_timer.h"
#include "data/loader.h"
#include "data/tokenizer.h"
#include "distributed/launcher.h"
#include "distributed/nccl_communicator.h"
#include "distributed/world.h"
#include "models/flops.h"
#include "optim/stable_adamw.h"
#include "optim/update_in_backward.h"
#include "runtime/allocator.h"
#include "runtime/parallel.h"
#include "runtime/program.h"

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

// A rank may be this long at one place before the others are told that it hangs (distributed/watch.h).
constexpr double step_seconds = 30, set_up_seconds = 600, long_seconds = 3600;

// The run itself, from the data to the last checkpoint.
int train(const TrainingOptions& options, const ClipConfig& config, Device device, DType dtype,
          const std::shared_ptr<const Tokenizer>& tokenizer, const RunFolder& folder, TrainingLog& log,
          World& world) {
  // ---- data ----
  world.at("preparing", set_up_seconds);
  const Warn warn = [&log, &world](const std::string& line) {
    if (world.leads()) return log.warning(line);
    std::fprintf(stderr, "rank %d: %s\n", world.rank(), line.c_str());
  };
  const std::shared_ptr<SampleSource> source = open_training_data(options, config, warn);
  const int64_t samples = samples_of_epoch(options, source.get());
  const Plan plan = make_plan(options, samples, world.size());
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
  if (update_in_backward(options.optimizer_in_backward, world.size(), options.accum_freq,
                         options.grad_clip_norm.value_or(0)))
    arena.share_gradients();
  arena.allocate(options.zero ? world.size() : 1);
  prepare_parameters(options, config, arena, [&log](const std::string& line) { log.info(line); });
  Communicator& ranks = world.communicator(device);
  const DataParallel::Options parallel{options.reduce == "bf16", options.zero == 1 && world.size() > 1,
                                       find_overlap(options.overlap_reduce)};
  OptimizerShard shard;
  if (parallel.sharded) {
    const int64_t share = arena.masters().size() / world.size();
    shard = {&ranks, share * world.rank(), share};
  }
  AdamW optimizer(arena, optimizer_options(options), shard);

  TrainingProgress progress;
  progress.seed = options.seed;
  progress.options_json = options_json(options);
  if (!options.resume.empty()) {
    const std::string checkpoint =
        world.agree(options.resume == "latest" ? latest_checkpoint(folder.checkpoints()) : options.resume);
    if (checkpoint.empty()) {
      log.info("no checkpoint to resume from: starting afresh");  // job scripts always pass --resume latest
    } else {
      progress =
          go_on_from(checkpoint, world.agree(folder.checkpoints()), plan, options, arena, optimizer, log);
      progress.options_json = options_json(options);
    }
  }
  LoaderOptions loader_options = training_loader(options, config, plan.global_batch / world.size(), warn);
  loader_options.rank = world.rank();
  loader_options.world_size = world.size();
  loader_options.seed = static_cast<uint64_t>(progress.seed);
  loader_options.page_locked = device.kind == Device::cuda;
  if (!progress.loader.empty()) loader_options.start = StreamState::parse(progress.loader);
  Loader loader(source, tokenizer, loader_options);

  const EvaluationData evaluation_data(evaluation_options(options), config, tokenizer, warn);

  // ---- the step ----
  const PixelNormalization normalization = pixel_normalization(options);
  const Clip::Options training{normalization, find_recompute(options.recompute), nullptr};
  const Clip::Options evaluating{normalization, Recompute::none, nullptr};
  TrainingStep step(clip, arena, optimizer, plan.global_batch / world.size(),
                    {training, static_cast<uint64_t>(progress.seed), options.accum_freq, options.eager, warn,
                     &ranks, &world.host(), parallel});
  if (world.size() > 1)
    log.info(step.about_ranks());
  else if (options.zero == 1 || options.reduce != "fp32" || options.overlap_reduce != "auto")
    log.warning("--zero, --reduce and --overlap-reduce have no effect on one rank (--nproc starts several)");
  if (device.kind == Device::cuda) {
    step.rehearse();
    log.info(memory_plan(device));
  }

  const bool writes = !world.agree(folder.path()).empty();
  CheckpointWriter writer(folder.checkpoints(), options.keep_last_k.value_or(0));
  auto report_saved = [&](bool wait) {
    if (const std::string path = writer.completed(wait); !path.empty()) log.info("saved " + path);
  };
  auto save = [&] {
    if (!writes) return;
    world.at("saving a checkpoint", long_seconds);
    report_saved(true);  // the one before
    step.share_masters();
    if (!world.leads()) {
      if (parallel.sharded) optimizer.state(false);  // rank 0 asks for all moments
      return world.host().barrier();            // nobody goes on before the values are copied
    }
    progress.loader = loader.state().to_string();
    writer.save(config, normalization, arena, optimizer, progress);  // written while training goes on
    world.host().barrier();
    log.write_picture();
  };
  auto evaluate = [&](bool retrieval, bool zero_shot) {
    world.at("evaluating", long_seconds);
    const MemoryContext memory("evaluation");
    const double start = now();
    const EvaluationRanks all{ranks, world.host()};
    std::optional<Retrieval> r;
    std::optional<ZeroShot> z;
    if (retrieval) r = evaluation_data.retrieval(clip, evaluating, device, all);
    if (zero_shot) z = evaluation_data.zero_shot(clip, evaluating, device, all);
    if (r || z) log.evaluation(progress.epoch, progress.step, r, z, now() - start);  // rank 0 writes it
  };
  bool stopping = false;    // all ranks, after the same step
  double longest_step = 0;  // seconds; where a step takes minutes, five of them are no hang
  const int64_t first_step = progress.step;
  // The numbers of a step arrive while the next one runs; what the host knew when it launched it waits here.
  std::deque<StepRecord> launched;
  double pause_seconds = 0;  // spent on checkpoints and evaluations since the last launch
  auto report = [&](const StepNumbers& done) {
    stopping |= done.stop;
    longest_step = std::max(longest_step, done.work_seconds);
    StepRecord record = std::move(launched.front());
    launched.pop_front();
    if (!std::isfinite(done.loss))
      fail("the loss is ", std::isnan(done.loss) ? "NaN" : "infinite", " at step ", done.step,
           "; first tensor that is not finite: ",
           first_non_finite(arena, [&] { step.repeat_forward(done.step); }),
           ". Nothing was saved since; try a lower --lr, a longer --warmup, --opt stableadamw or "
           "--grad-clip-norm 1, "
           "and go on with --resume latest");
    const bool first = done.step == first_step;
    record.loss = done.loss;
    record.logit_scale = done.logit_scale;
    record.gradient_norm = done.optimizer.gradient_norm;
    record.visual_gradient_norm = done.optimizer.visual_gradient_norm;
    record.text_gradient_norm = done.optimizer.text_gradient_norm;
    record.largest_rms = done.optimizer.largest_rms;
    record.largest_rms_name = done.optimizer.largest_rms_name;
    record.patch_embedding_rms = optimizer.rms_of("visual.conv1.weight");
    record.skipped = done.optimizer.skipped;
    record.peak_memory = allocator(device).statistics().peak_held;
    // The device waits for data no longer than the host does, and no longer than it is idle.
    const double idle = first ? record.data_seconds : std::max(0.0, done.idle_seconds - record.pause_seconds);
    record.data_seconds = std::min(record.data_seconds, idle);
    record.step_seconds = idle + done.work_seconds;
    log.step(record);
    if ((record.step + 1) % plan.steps_per_epoch == 0 || record.step + 1 == plan.total_steps)
      log.end_epoch(record.epoch);
  };
  auto report_all = [&] {
    world.watch().waiting(true, "the results of the last steps");
    while (auto done = step.collect(true)) {
      world.watch().check();  // when a rank has failed, the numbers mean nothing
      report(*done);
    }
    world.watch().waiting(false);
  };
  int64_t saved_at = progress.step;
  // What fails between two steps (damaged data, an evaluation) must not cost the steps since the last
  // checkpoint.
  auto or_save = [&](const auto& work) {
    try {
      work();
    } catch (...) {
      report_all();  // a loss that is not finite is the greater trouble
      if (saved_at != progress.step && world.size() == 1) save();  // else the others are elsewhere
      report_saved(true);
      throw;
    }
  };
  for (int signal : {SIGTERM, SIGUSR1, SIGINT}) std::signal(signal, on_stop_signal);

  log.start(progress.step, progress.options_json, model_config_json(config));
  std::optional<OpTimer> timer;
  Batch batch;
  while (progress.step < plan.total_steps && !stopping && !(stop_signal && world.size() == 1)) {
    const double start = now();
    world.at(concat("loading the batch of step ", progress.step), long_seconds);
    or_save([&] { loader.next(batch); });
    StepRecord record;
    record.step = progress.step;
    record.epoch = progress.step / plan.steps_per_epoch;
    record.step_in_epoch = progress.step % plan.steps_per_epoch;
    record.steps_per_epoch = plan.steps_per_epoch;
    record.total_steps = plan.total_steps;
    record.global_batch = plan.global_batch;
    record.ranks = plan.ranks;
    record.samples_seen = progress.samples_seen + plan.global_batch;
    record.learning_rate = schedule.rate(progress.step);
    record.data_seconds = now() - start;
    record.pause_seconds = std::exchange(pause_seconds, 0);

    // One step: forward, backward, update (training_step.h). It is queued; the numbers are those of the step
    // before.
    const bool profiled =
        options.profiled && record.step >= (*options.profiled)[0] && record.step <= (*options.profiled)[1];
    if (profiled) timer ? timer->start() : void(timer.emplace(device));
    // The first steps plan and capture.
    world.at(concat("step ", record.step),
             record.step < first_step + 4 ? set_up_seconds : std::max(step_seconds, 5 * longest_step));
    step.bring(batch.images, batch.tokens);
    record.text_length = step.text_length();
    step.launch(record.step, record.learning_rate, stop_signal != 0);
    if (profiled) timer->lap("optimizer");
    launched.push_back(std::move(record));
    ++progress.step;
    progress.samples_seen += plan.global_batch;
    progress.epoch = progress.step / plan.steps_per_epoch;
    world.watch().waiting(true, "the results of the step before");
    if (auto done = step.collect()) {
      world.watch().check();
      report(*done);
    }
    world.watch().waiting(false);
    report_saved(false);
    if (profiled && (progress.step > (*options.profiled)[1] || progress.step == plan.total_steps)) {
      log.info("Where the time goes, steps " + options.profile_steps + ":\n" +
               timer->text(progress.step - (*options.profiled)[0]));
      timer.reset();
    }

    // Evaluations and checkpoints, at the end of epochs and at their own intervals.
    const bool last = progress.step == plan.total_steps;
    const bool epoch_ends = progress.step % plan.steps_per_epoch == 0 || last;
    auto due = [&](int64_t frequency) {
      return frequency > 0 && epoch_ends && (progress.epoch % frequency == 0 || last);
    };
    const bool by_step = options.eval_every_n_steps && progress.step % *options.eval_every_n_steps == 0;
    const bool save_now = last || (epoch_ends && options.save_most_recent) || due(options.save_frequency) ||
                          (options.save_every_n_steps && progress.step % *options.save_every_n_steps == 0);
    const bool retrieval = by_step || due(options.val_frequency);
    const bool zero_shot = by_step || due(options.zeroshot_frequency);
    if (!save_now && !retrieval && !zero_shot) continue;
    report_all();
    const double pause = now();
    if (save_now) save(), saved_at = progress.step;
    or_save([&] { evaluate(retrieval, zero_shot); });
    pause_seconds = now() - pause;
  }

  report_all();
  if ((stopping || stop_signal) && saved_at != progress.step) save();
  world.at("writing the last checkpoint", long_seconds);
  report_saved(true);
  if (stopping || stop_signal) {
    log.info(concat("stopped by signal ", stop_signal ? static_cast<int>(stop_signal) : SIGTERM,
                    " after step ", progress.step, "; --resume latest goes on"));
  } else {
    log.write_picture();
    const LoaderStatistics statistics = loader.statistics();
    for (const auto& [reason, count] : statistics.reasons)
      log.info(concat("data: ", count, " samples: ", reason));
    log.info("training is complete");
  }
  return 0;
}

// One rank's run, with what is written about it: rank 0's alone.
int train_as_rank(const TrainingOptions& options, const ClipConfig& config, Device device, DType dtype,
                  const std::shared_ptr<const Tokenizer>& tokenizer, const std::vector<std::string>& notices,
                  World& world) {
  RunFolder folder(options.dry_run || !world.leads() ? "none" : options.logs, run_name(options),
                   !options.resume.empty());
  TrainingLog log({folder.path(), options.log_every_n_steps, nominal_flops(config).training(),
                   options.report_to.find("tensorboard") != std::string::npos || options.report_to == "all",
                   options.log_metric_every_n_steps.value_or(0), !world.leads()});
  for (const std::string& notice : notices) log.warning(notice);
  try {
    return train(options, config, device, dtype, tokenizer, folder, log, world);
  } catch (const std::exception& error) {
    const std::string line = world.last_words(error);
    // stderr, and out.log, where people look the next morning
    if (world.leads()) log.error(concat("clip_train: ", line));
    if (!world.leads() && !line.empty()) std::fprintf(stderr, "clip_train: %s\n", line.c_str());
    return 1;
  }
}

int run(int argc, char** argv) {
  // ---- options ----
  std::vector<std::string> notices;
  const TrainingOptions options = parse_training_options(argc, argv, notices);
  if (options.nproc && !options.dry_run) return *launch_if_asked(argc, argv);
  const RankEnvironment environment = options.dry_run ? RankEnvironment() : rank_environment();
  if (options.threads > 0) set_cpu_threads(static_cast<int>(options.threads));
  const ClipConfig config = configured_model(options);
  const bool on_gpu = options.device == "cuda" || (options.device == "auto" && cuda_available());
  const int gpu = environment.world_size > 1 && on_gpu ? gpu_of_rank(environment, visible_gpus()) : 0;
  const Device device = on_gpu ? Device{Device::cuda, gpu} : cpu_device;
  const bool wide = options.precision == "fp32" || (options.precision == "auto" && !on_gpu);
  const DType dtype = wide ? DType::f32 : DType::bf16;

  const bool bytes = options.tokenizer.empty() && config.text.vocab_size == 259;
  std::shared_ptr<const Tokenizer> tokenizer;
  if (!options.dry_run)  // which reads no caption
    tokenizer =
        make_tokenizer(bytes ? "bytes" : options.tokenizer, static_cast<int32_t>(config.text.context_length));
  if (tokenizer && tokenizer->vocabulary_size() > config.text.vocab_size)
    fail("the tokenizer has ", tokenizer->vocabulary_size(), " ids, model ", config.name, " only ",
         config.text.vocab_size, ": choose another --tokenizer or --model");

  World world(environment, {agreement(options), gpu_seat(device)});
  try {
    return train_as_rank(options, config, device, dtype, tokenizer, notices, world);
  } catch (const std::exception& error) {
    const std::string line = world.last_words(error);
    if (!line.empty()) std::fprintf(stderr, "clip_train: %s\n", line.c_str());
    return 1;
  }
}

}  // namespace
}  // namespace switchback

int main(int argc, char** argv) {
  return switchback::run_program("clip_train", switchback::run, argc, argv);
}
