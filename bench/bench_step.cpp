// bench_step.cpp: time, memory and time budget of one training step on random pixels and tokens that lie on
// the device: forward, backward, update; the step of clip_train, without data loading.
//
//   build/bench/bench_step --model ViT-B-32 --batch-size 1024 --device cuda --precision amp_bf16 [--steps 20]
//     [--opt adamw|stableadamw] [--linear RECIPE] [--recompute none|gelu|cheap|blocks] [--layer-scale 0]
//     [--eager] [--whole-last-block] [--text-length N] [--optimizer-in-backward off] [--profile] [--budget]
//     [--json FILE] [--nproc N [--zero 1] [--reduce bf16] [--overlap-reduce on|off]]
//
// Prints the median step after three to warm up (two op by op, one to capture the graph; --eager captures
// none), samples/s, the model's FLOPs per second (nominal: three forward passes, full context, all patches)
// and on a GPU the share of the nominal peak (MFU) and the memory: the most that tensors used, what the
// allocator held, and what the whole device had in use. --json appends the same as a line to a file.
//
// --nproc N: N processes, one GPU and one batch each, as clip_train works over ranks (or start it with
// torchrun, srun, mpirun); the figures are rank 0's, samples/s those of all.
//
// --whole-last-block computes all rows of each tower's last block, as other programs do; clip_train computes
// the ones that are read. The nominal FLOPs count them all, either way.
// --text-length N: captions of at most N tokens, the text stops behind the longest one as in clip_train.
// Without it the text tower computes its whole context, as other programs do, which is what nominal FLOPs
// count.
//
// --profile adds where the time goes, by kernel group and by op, op by op without a graph: time on the device
// from the end of one op to the end of the next. Beside each group stands what its shapes ask for at least
// (step_budget.h) at the bandwidth of a copy measured here and the nominal peak: `floor`.
// --budget prints what the shapes ask for at an H100's nominal 3.0 TB/s and 989.4 TFLOP/s, and does no step.
// bench/framework_baseline.py runs this program and PyTorch in turns and prints the ratio.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "apps/flags.h"
#include "apps/training_step.h"
#include "autograd/checkpoint.h"
#include "autograd/op_timer.h"
#include "bench/step_budget.h"
#include "distributed/launcher.h"
#include "distributed/nccl_communicator.h"
#include "distributed/world.h"
#include "kernels/transfer.h"
#include "models/text_length.h"
#include "optim/stable_adamw.h"
#include "optim/update_in_backward.h"
#include "runtime/allocator.h"
#include "runtime/parallel.h"
#include "runtime/philox.h"

using namespace switchback;

namespace {

constexpr double peak_flops = 989.4e12;  // dense bf16 of an H100 SXM
constexpr double gib = 1024.0 * 1024 * 1024;
constexpr int warm_up_steps = 3;

struct Options {
  std::string model = "mini-28", optimizer = "adamw", precision = "fp32", device = "cpu", json;
  std::string recompute = "none", linear = "standard", reduce = "fp32", overlap = "auto";
  std::string in_backward = "auto";
  int64_t nproc = 0, zero = 0;
  std::optional<double> layer_scale;
  std::optional<int64_t> text_length;
  int64_t batch_size = 256, steps = 20;
  bool profile = false, eager = false, budget = false, whole_last_block = false;
};

// False after --help was printed.
bool parse(int argc, char** argv, Options& o) {
  CLI::App app("Time, memory and time budget of one training step on random data");
  app.add_option("--model", o.model, "preset or model JSON")->capture_default_str();
  app.add_option("--batch-size", o.batch_size, "samples per step")->check(positive())->capture_default_str();
  app.add_option("--steps", o.steps, "steps that are timed")->check(positive())->capture_default_str();
  app.add_option("--opt", o.optimizer)->check(CLI::IsMember({"adamw", "stableadamw"}))->capture_default_str();
  app.add_option("--precision", o.precision)
      ->check(CLI::IsMember({"fp32", "amp_bf16"}))
      ->capture_default_str();
  app.add_option("--device", o.device)->check(CLI::IsMember({"cpu", "cuda"}))->capture_default_str();
  app.add_option("--recompute", o.recompute, "none, gelu, cheap or blocks; gelu:8: in the first 8 blocks")->capture_default_str();
  app.add_option("--optimizer-in-backward", o.in_backward, "update block by block: auto, on or off")
      ->capture_default_str();
  app.add_option("--linear", o.linear, "recipe of the blocks' linears")->capture_default_str();
  app.add_option("--layer-scale", o.layer_scale, "initial value; without it there is no layer-scale");
  app.add_option("--json", o.json, "also append the figures to this file as a line");
  app.add_option("--nproc", o.nproc, "start so many ranks on this host, one GPU each");
  app.add_option("--zero", o.zero, "1: the optimizer's state is sharded over ranks")->check(CLI::Range(0, 1));
  app.add_option("--reduce", o.reduce, "type in which gradients travel")->check(CLI::IsMember({"fp32", "bf16"}));
  app.add_option("--overlap-reduce", o.overlap, "gradients travel beside the backward pass: auto, on or off");
  app.add_flag("--whole-last-block", o.whole_last_block, "compute all rows of each tower's last block");
  app.add_option("--text-length", o.text_length, "tokens of the longest caption, where the text stops")
      ->check(positive());
  app.add_flag("--eager", o.eager, "op by op, no captured graph");
  app.add_flag("--profile", o.profile, "where the time goes");
  app.add_flag("--budget", o.budget, "only print what the shapes ask for");
  return parse_flags(app, argc, argv);
}

// Bytes per second of a copy much larger than the caches, read and written.
double copy_bandwidth(Device device) {
  const int64_t count = device == cpu_device ? 16 << 20 : 256 << 20;
  Kernels& k = kernels(device);
  const Tensor from({count}, DType::f32, device), to({count}, DType::f32, device);
  k.fill(from, 1);
  std::vector<double> times;
  for (int i = 0; i < 8; ++i) {
    const auto begin = k.mark();
    k.accumulate({to}, from);
    times.push_back(k.mark()->seconds_since(*begin));
  }
  return 8.0 * static_cast<double>(count) / *std::min_element(times.begin(), times.end());
}

void print_budget(const ClipConfig& config, int64_t batch_size, int64_t text_length) {
  const StepBudget budget = step_budget(config, batch_size, text_length);
  double total = 0;
  std::printf("%s, batch %lld\n%-26s %10s %10s %10s\n", config.name.c_str(),
              static_cast<long long>(batch_size), "kernel group", "TFLOP", "GB", "floor ms");
  for (size_t g = 0; g < kernel_group_count; ++g) {
    const double floor = std::max(budget[g].bytes / 3.0e12, budget[g].flops / peak_flops);
    total += floor;
    std::printf("%-26s %10.3f %10.2f %10.3f  %s\n", kernel_group_names[g], budget[g].flops * 1e-12,
                budget[g].bytes * 1e-9, floor * 1e3,
                budget[g].bytes / 3.0e12 > budget[g].flops / peak_flops ? "bandwidth" : "arithmetic");
  }
  std::printf("%-26s %32.3f\n", "all", total * 1e3);
}

// tokens (B, T): ids at random; with --text-length the largest id stands within the first N places, in the
// first row at the last of them.
Tensor random_captions(const ClipConfig& config, const Options& o) {
  PhiloxStream random(1, RandomPurpose::synthetic_data, 1);
  const int64_t context = config.text.context_length, longest = o.text_length.value_or(context);
  if (longest > context) fail("--text-length ", longest, ": ", config.name, " has a context of ", context);
  const auto below = [&](int64_t n) { return static_cast<int64_t>(random.below(static_cast<uint64_t>(n))); };
  const auto end = static_cast<int32_t>(config.text.vocab_size - 1);
  Tensor tokens({o.batch_size, context}, DType::i32);
  for (int32_t& id : tokens.span<int32_t>()) id = static_cast<int32_t>(below(o.text_length ? end : end + 1));
  for (int64_t row = 0; o.text_length && row < o.batch_size; ++row)
    tokens.slice(row, 1).span<int32_t>()[static_cast<size_t>(row == 0 ? longest - 1 : below(longest))] = end;
  return tokens;
}

void print_groups(const std::vector<OpTimer::Line>& lines, const StepBudget& budget, int64_t steps,
                  double bandwidth, bool gpu) {
  std::array<double, kernel_group_count> seconds{};
  double total = 0, total_floor = 0;
  for (const OpTimer::Line& line : lines) {
    seconds[group_of(line.name)] += line.seconds / static_cast<double>(steps);
    total += line.seconds / static_cast<double>(steps);
  }
  std::printf("%-26s %9s %7s %9s %9s %10s %8s\n", "kernel group", "ms/step", "share", "TFLOP/s", "GB/s",
              gpu ? "floor ms" : "", gpu ? "of it" : "");
  for (size_t g = 0; g < kernel_group_count; ++g) {
    if (seconds[g] == 0) continue;
    std::printf("%-26s %9.3f %6.1f%% %9.2f %9.1f", kernel_group_names[g], seconds[g] * 1e3,
                seconds[g] / total * 100, budget[g].flops / seconds[g] * 1e-12,
                budget[g].bytes / seconds[g] * 1e-9);
    const double floor = std::max(budget[g].bytes / bandwidth, budget[g].flops / peak_flops);
    total_floor += floor;
    if (gpu) std::printf(" %10.3f %7.1f%%", floor * 1e3, floor / seconds[g] * 100);
    std::printf("\n");
  }
  std::printf("%-26s %9.3f", "all", total * 1e3);
  if (gpu)
    std::printf(" %38.3f %7.1f%%   (copy %.0f GB/s, peak %.1f TFLOP/s)", total_floor * 1e3,
                total_floor / total * 100, bandwidth * 1e-9, peak_flops * 1e-12);
  std::printf("\n\n");
}

int run(const Options& o, World& world, Device device) {
  ClipConfig config = find_model(o.model);
  if (o.layer_scale) config.vision.layer_scale = config.text.layer_scale = o.layer_scale;
  config.vision.linear = config.text.linear = o.linear;
  config.whole_last_block = o.whole_last_block;
  config.whole_text = !o.text_length;
  check_config(config);
  const Tensor tokens = random_captions(config, o);
  const int64_t text = text_may_stop(config) ? text_length(tokens) : config.text.context_length;
  if (o.budget) {
    print_budget(config, o.batch_size, text);
    return 0;
  }
  const bool gpu = device.kind == Device::cuda;
  world.at("the benchmark", 600);
  Communicator& ranks = world.communicator(device);
  const DataParallel::Options parallel{o.reduce == "bf16", o.zero == 1 && world.size() > 1,
                                       find_overlap(o.overlap)};
  ParameterArena arena(o.precision == "fp32" ? DType::f32 : DType::bf16, device, 1);
  const Clip clip(arena, config);
  if (update_in_backward(o.in_backward, world.size(), 1, 0)) arena.share_gradients();
  arena.allocate(parallel.sharded ? world.size() : 1);
  OptimizerShard shard;
  if (parallel.sharded) {
    const int64_t share = arena.masters().size() / world.size();
    shard = {&ranks, share * world.rank(), share};
  }
  AdamW optimizer(arena, o.optimizer == "stableadamw" ? stable_adamw() : AdamWOptions(), shard);
  TrainingStep::Options options;
  options.clip.recompute = find_recompute(o.recompute);
  options.eager = o.eager;
  options.warn = [](const std::string& line) { std::fprintf(stderr, "bench_step: %s\n", line.c_str()); };
  options.ranks = &ranks;
  options.host = &world.host();
  options.parallel = parallel;
  TrainingStep step(clip, arena, optimizer, o.batch_size, options);

  PhiloxStream random(1, RandomPurpose::synthetic_data, static_cast<uint64_t>(world.rank()));
  const int64_t size = config.vision.image_size;
  Tensor images({o.batch_size, size, size, 3}, DType::u8);
  for (uint8_t& v : images.span<uint8_t>()) v = static_cast<uint8_t>(random.next_u32());
  step.bring(images, tokens);  // every step works on this batch

  // Median time from the end of a step to the end of the next one, on the device.
  std::vector<double> times;
  double loss = 0;
  bool captured = false;
  const auto collect = [&](bool newest) {
    const auto done = step.collect(newest);
    if (!done) return;
    if (done->step >= warm_up_steps) times.push_back(done->work_seconds + done->idle_seconds);
    loss = done->loss;
  };
  for (int64_t i = 0; i < warm_up_steps + o.steps; ++i) {
    step.launch(i, 1e-4);
    captured = step.captured();
    collect(false);
  }
  collect(true);
  std::sort(times.begin(), times.end());
  const double median = (times[(times.size() - 1) / 2] + times[times.size() / 2]) / 2;
  const double rate = static_cast<double>(o.batch_size) / median;  // of this rank
  if (!world.leads()) return 0;
  const double flops = nominal_flops(config).training();
  const std::string where = gpu ? concat(device) : concat(cpu_threads(), " threads");
  std::string mode = gpu ? captured ? "graph" : "eager" : "cpu";
  if (o.whole_last_block) mode += ", whole last block";
  if (o.text_length) mode += concat(", text ", text, " of ", config.text.context_length);
  if (o.recompute != "none") mode += ", recompute " + o.recompute;
  if (!arena.shares_gradients() && world.size() == 1) mode += ", optimizer behind backward";
  if (world.size() > 1)
    mode += concat(", ", world.size(), " ranks, reduction ", step.overlaps() ? "beside" : "behind", " backward");
  if (world.size() > 1 && o.reduce == "bf16") mode += ", bf16 reduction";
  if (parallel.sharded) mode += ", ZeRO-1";
  std::printf(
      "switchback %s, batch %lld, %s, %s, %s, %s, %s: median step %.3f ms (fastest %.3f), %.1f samples/s, ",
      config.name.c_str(), static_cast<long long>(o.batch_size), o.precision.c_str(), o.linear.c_str(),
      o.optimizer.c_str(), where.c_str(), mode.c_str(), median * 1e3, times[0] * 1e3, rate * world.size());
  nlohmann::json line = {{"program", "switchback"},
                         {"mode", mode},
                         {"model", config.name},
                         {"batch", o.batch_size},
                         {"precision", o.precision},
                         {"linear", o.linear},
                         {"optimizer", o.optimizer},
                         {"recompute", o.recompute},
                         {"whole_last_block", o.whole_last_block},
                         {"text_length", text},
                         {"device", where},
                         {"step_ms", median * 1e3},
                         {"fastest_ms", times[0] * 1e3},
                         {"samples_per_second", rate * world.size()},
                         {"ranks", world.size()},
                         {"zero", o.zero},
                         {"optimizer_in_backward", arena.shares_gradients()},
                         {"reduce", o.reduce},
                         {"overlaps", step.overlaps()},
                         {"flops_per_sample", flops},
                         {"loss", loss}};
  if (gpu) {
    const MemoryStatistics memory = allocator(device).statistics();
    const double peak = static_cast<double>(memory.peak_used) / gib,
                 held = static_cast<double>(memory.held) / gib,
                 used = memory.room ? static_cast<double>(memory.room->total - memory.room->free) / gib : 0;
    std::printf("%.1f TFLOP/s, MFU %.1f%%, memory %.2f GiB (held %.2f, device %.2f), ", rate * flops * 1e-12,
                rate * flops / peak_flops * 100, peak, held, used);
    line.update(
        {{"mfu", rate * flops / peak_flops}, {"peak_gib", peak}, {"held_gib", held}, {"device_gib", used}});
  } else {
    std::printf("%.1f GFLOP/s, ", rate * flops * 1e-9);
  }
  std::printf("loss %.4f\n", loss);
  std::fflush(stdout);
  if (!o.json.empty() && !(std::ofstream(o.json, std::ios::app) << line.dump() << "\n"))
    fail("cannot write to --json ", o.json);

  if (o.profile && world.size() > 1) fail("--profile is for one rank");
  if (o.profile) {
    const double bandwidth = copy_bandwidth(device);
    const int64_t steps = std::min<int64_t>(o.steps, 10);
    OpTimer timer(device);
    for (int64_t i = 0; i < steps; ++i) {
      timer.start();
      step.launch(warm_up_steps + o.steps + i, 1e-4);
      timer.lap("optimizer");
      collect(false);
    }
    collect(true);
    print_groups(timer.table(), step_budget(config, o.batch_size, text), steps, bandwidth, gpu);
    std::printf("%s", timer.text(steps).c_str());
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    Options options;
    if (!parse(argc, argv, options)) return 0;
    if (options.nproc > 0) return *launch_if_asked(argc, argv);
    const RankEnvironment environment = rank_environment();
    const bool gpu = options.device == "cuda";
    const int index = gpu && environment.world_size > 1 ? gpu_of_rank(environment, visible_gpus()) : 0;
    const Device device = gpu ? Device{Device::cuda, index} : cpu_device;
    World world(environment, {{}, gpu_seat(device)});
    try {
      return run(options, world, device);
    } catch (const std::exception& e) {
      const std::string line = world.last_words(e);
      if (!line.empty()) std::fprintf(stderr, "bench_step: %s\n", line.c_str());
      return 1;
    }
  } catch (const std::exception& e) {
    std::fprintf(stderr, "bench_step: %s\n", e.what());
    return 1;
  }
}
