// bench_step.cpp: time of one training step on random pixels and tokens: forward, backward, update; no data
// loading.
//
//   build/bench/bench_step --model mini-28 --batch-size 256 [--steps 20] [--opt adamw|stableadamw]
//                          [--precision fp32|amp_bf16] [--device cpu|cuda] [--profile]
//
// Prints the median step after three to warm up, samples/s and the model's FLOPs per second (nominal, 3
// forward passes).
// --profile adds where the time goes by op: wall time from the end of one op to the end of the next (on a GPU
// each op is waited for, so that small ones look longer than they are).
// bench/framework_baseline.py runs this program and PyTorch in turns and prints the ratio.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <map>

#include "kernels/transfer.h"
#include "models/clip.h"
#include "models/flops.h"
#include "optim/stable_adamw.h"
#include "runtime/parallel.h"
#include "runtime/philox.h"

using namespace switchback;

namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Options {
  std::string model = "mini-28", optimizer = "adamw", precision = "fp32", device = "cpu";
  int64_t batch_size = 256, steps = 20;
  bool profile = false;
};

Options parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--profile") {
      o.profile = true;
      continue;
    }
    if (i + 1 == argc) fail(flag, " needs a value");
    const std::string value = argv[++i];
    if (flag == "--model")
      o.model = value;
    else if (flag == "--batch-size")
      o.batch_size = std::stoll(value);
    else if (flag == "--steps")
      o.steps = std::stoll(value);
    else if (flag == "--opt")
      o.optimizer = value;
    else if (flag == "--precision")
      o.precision = value;
    else if (flag == "--device")
      o.device = value;
    else
      fail("unknown flag ", flag,
           "; there are --model --batch-size --steps --opt --precision --device --profile");
  }
  if (o.batch_size < 1 || o.steps < 1) fail("--batch-size and --steps must be positive");
  if (o.optimizer != "adamw" && o.optimizer != "stableadamw")
    fail("--opt is adamw or stableadamw, got ", o.optimizer);
  if (o.precision != "fp32" && o.precision != "amp_bf16")
    fail("--precision is fp32 or amp_bf16, got ", o.precision);
  if (o.device != "cpu" && o.device != "cuda") fail("--device is cpu or cuda, got ", o.device);
  return o;
}

// Adds up wall time by name.
class Profile {
 public:
  void start() { last_ = now(); }
  void lap(const std::string& name) {
    const double t = now();
    Line& line = lines_[name];
    line.seconds += t - last_;
    ++line.calls;
    last_ = t;
  }
  void print(int64_t steps) const {
    std::vector<std::pair<std::string, Line>> lines(lines_.begin(), lines_.end());
    std::sort(lines.begin(), lines.end(),
              [](auto& a, auto& b) { return a.second.seconds > b.second.seconds; });
    double total = 0;
    for (const auto& [name, line] : lines) total += line.seconds;
    const double count = static_cast<double>(steps);
    std::printf("%-28s %8s %10s %8s\n", "op", "calls", "ms/step", "share");
    for (const auto& [name, line] : lines)
      std::printf("%-28s %8.0f %10.3f %7.1f%%\n", name.c_str(), static_cast<double>(line.calls) / count,
                  line.seconds / count * 1e3, line.seconds / total * 100);
  }

 private:
  struct Line {
    double seconds = 0;
    int64_t calls = 0;
  };
  std::map<std::string, Line> lines_;
  double last_ = 0;
};

int run(const Options& o) {
  const ClipConfig config = find_model(o.model);
  const Device device = o.device == "cuda" ? Device{Device::cuda, 0} : cpu_device;
  ParameterArena arena(o.precision == "fp32" ? DType::f32 : DType::bf16, device, 1);
  const Clip clip(arena, config);
  arena.allocate();
  AdamW optimizer(arena, o.optimizer == "stableadamw" ? stable_adamw() : AdamWOptions());

  PhiloxStream random(1, RandomPurpose::synthetic_data, 0);
  const int64_t size = config.vision.image_size, context = config.text.context_length;
  Tensor images({o.batch_size, size, size, 3}, DType::u8), tokens({o.batch_size, context}, DType::i32);
  for (uint8_t& v : images.span<uint8_t>()) v = static_cast<uint8_t>(random.next_u32());
  for (int32_t& v : tokens.span<int32_t>())
    v = static_cast<int32_t>(random.below(static_cast<uint64_t>(config.text.vocab_size)));

  images = to_device(images, device);
  tokens = to_device(tokens, device);

  Profile profile;
  const auto step = [&] {
    profile.start();
    arena.begin_backward();
    const Variable loss = clip.loss(clip.encode_image(images, {}), clip.encode_text(tokens, {}));
    tape().backward(loss);
    arena.finish_backward();
    optimizer.step(1e-4);
    clip.clamp_logit_scale();
    profile.lap("optimizer");
    return number(loss.value());
  };

  for (int i = 0; i < 3; ++i) step();
  std::vector<double> times;
  double loss = 0;
  for (int64_t i = 0; i < o.steps; ++i) {
    const double start = now();
    loss = step();
    times.push_back(now() - start);
  }
  std::sort(times.begin(), times.end());
  const double median = (times[(times.size() - 1) / 2] + times[times.size() / 2]) / 2;
  const double rate = static_cast<double>(o.batch_size) / median;
  std::printf(
      "switchback %s, batch %lld, %s, %s, %s: median step %.3f ms (fastest %.3f), %.1f samples/s, "
      "%.1f GFLOP/s, loss %.4f\n",
      config.name.c_str(), static_cast<long long>(o.batch_size), o.precision.c_str(), o.optimizer.c_str(),
      (device == cpu_device ? concat(cpu_threads(), " threads") : concat(device)).c_str(), median * 1e3,
      times[0] * 1e3, rate, rate * nominal_flops(config).training() * 1e-9, loss);

  if (o.profile) {
    profile = {};
    const auto lap = [&](std::string_view op, const char* way) {
      kernels(device).synchronize();
      profile.lap(concat(op, way));
    };
    Tape::observe([&](std::string_view, std::string_view op, const Tensor&) { lap(op, " forward"); });
    Tape::observe_backward([&](std::string_view op) { lap(op, " backward"); });
    for (int64_t i = 0; i < o.steps; ++i) step();
    Tape::observe({});
    Tape::observe_backward({});
    profile.print(o.steps);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(parse(argc, argv));
  } catch (const std::exception& e) {
    std::fprintf(stderr, "bench_step: %s\n", e.what());
    return 1;
  }
}
