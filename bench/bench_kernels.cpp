// bench_kernels.cpp: time of every op against the roofline of the machine it runs on.
//
//   build/bench/bench_kernels [PART OF A NAME] [f64|f32|bf16] [--device cpu|cuda] [--model ViT-B-32:1024]
//
// Sizes: those of a small CLIP on a CPU, those of the model's training step on a GPU, or with --model.
// Prints, per case: the median and the fastest time of a call, TFLOP/s (products), GB/s (every operand moved
// once), and how much of the roofline that is: the least time that the arithmetic or the bytes would take,
// whichever is longer, over the median. The rulers are measured first, in the same run: the bandwidth of a
// copy larger than the caches, and one large product; on a GPU the arithmetic's ruler is the nominal peak
// (H100, dense bf16: 989.4 TFLOP/s), which a product of random numbers does not reach for want of power.
//
// A GPU's calls are recorded ten at a time and replayed, so that the launches cost nothing; operands of less
// than 128 MB together have copies that take turns, so that the L2 cache does not flatter. CPU threads:
// SWITCHBACK_CPU_THREADS. On a busy machine only a CPU's fastest time means something: a loop on all cores
// waits for its last thread.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <set>

#include "bench/clip_cases.h"
#include "bench/whole_number.h"
#include "runtime/parallel.h"
#include "runtime/program.h"

using namespace switchback;

namespace {

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Times {
  double fastest, median;
};
Times times_in(std::vector<double> times) {
  std::sort(times.begin(), times.end());
  return {times.front(), times[times.size() / 2]};
}

// Of calls that together take about 0.2 s.
Times times_on_cpu(const OpCase& op, DType dtype) {
  const Bound bound = bind(op, {dtype});
  op.call(bound);
  std::vector<double> times;
  for (const double end = seconds_now() + 0.2;
       times.size() < 5 || (seconds_now() < end && times.size() < 2000);) {
    const double start = seconds_now();
    op.call(bound);
    times.push_back(seconds_now() - start);
  }
  return times_in(times);
}

// Of 15 stretches of ten calls.
Times times_on_gpu(const OpCase& op, DType dtype, Device device) {
  constexpr int stretches = 15, calls = 10;
  std::vector<Bound> sets;
  const int64_t copies = std::clamp<int64_t>(static_cast<int64_t>(128e6 / op.bytes(dtype)), 1, calls);
  for (int64_t i = 0; i < copies; ++i) sets.push_back(bind(op, {.dtype = dtype, .device = device}));
  Kernels& k = sets[0].k;
  const auto work = [&] {
    for (int i = 0; i < calls; ++i) op.call(sets[static_cast<size_t>(i) % sets.size()]);
  };
  work();
  work();
  std::unique_ptr<Recording> recording;
  try {
    recording = k.record(work);
  } catch (const Error& error) {
    std::printf("(%s: launched one by one)\n", error.what());
  }
  std::vector<std::unique_ptr<Moment>> borders;
  borders.push_back(k.mark());
  for (int i = 0; i < stretches; ++i) {
    recording ? recording->replay() : work();
    borders.push_back(k.mark());
  }
  std::vector<double> times;
  for (size_t i = 0; i < stretches; ++i) times.push_back(borders[i + 1]->seconds_since(*borders[i]) / calls);
  return times_in(times);
}

struct Rulers {
  double bytes_per_second = 0, flops_per_second = 0;
};

class Bench {
 public:
  Bench(Device device, DType dtype) : device_(device), dtype_(dtype) {}

  void measure_rulers() {
    const OpCase copy = accumulate_case(device_ == cpu_device ? 16 << 20 : 512 << 20);
    rulers_.bytes_per_second = copy.bytes(dtype_) / show(copy).fastest;
    const int64_t n = device_ == cpu_device ? 2048 : 8192;
    const OpCase product = matmul_case(n, n, n, false, false);
    rulers_.flops_per_second = product.flops / show(product).fastest;
    if (device_ != cpu_device && dtype_ == DType::bf16) rulers_.flops_per_second = nominal_bf16;
    std::printf("rulers: %.0f GB/s, %.1f TFLOP/s\n", rulers_.bytes_per_second * 1e-9,
                rulers_.flops_per_second * 1e-12);
  }

  Times show(const OpCase& op) const {
    const Times t = device_ == cpu_device ? times_on_cpu(op, dtype_) : times_on_gpu(op, dtype_, device_);
    std::printf("%-62s %10.1f us (fastest %10.1f)", op.name.c_str(), t.median * 1e6, t.fastest * 1e6);
    if (op.flops > 0)
      std::printf(" %8.2f TFLOP/s", op.flops / t.median * 1e-12);
    else
      std::printf(" %16s", "");
    std::printf(" %8.1f GB/s", op.bytes(dtype_) / t.median * 1e-9);
    if (rulers_.flops_per_second > 0) {  // both are known
      const double by_bytes = op.bytes(dtype_) / rulers_.bytes_per_second;
      const double by_flops = op.flops / rulers_.flops_per_second;
      std::printf(" %5.1f%% of %s", std::max(by_bytes, by_flops) / t.median * 100,
                  by_bytes > by_flops ? "bandwidth" : "arithmetic");
    }
    std::printf("\n");
    std::fflush(stdout);
    return t;
  }

 private:
  static constexpr double nominal_bf16 = 989.4e12;
  Device device_;
  DType dtype_;
  Rulers rulers_;
};

std::set<std::string> every_op() {
  return {
#define KERNEL(op, arguments) #op,
#include "kernels/op_list.h"
#undef KERNEL
  };
}

int run(int count, char** arguments) {
  std::string part, model;
  Device device = cpu_device;
  std::optional<DType> dtype;
  for (int i = 1; i < count; ++i) {
    const std::string argument = arguments[i];
    if (argument == "--device" || argument == "--model") {
      if (++i == count) fail(argument, " needs a value");
      const std::string value = arguments[i];
      if (argument == "--model")
        model = value;
      else if (value == "cuda")
        device = {Device::cuda, 0};
      else if (value != "cpu")
        fail("--device is cpu or cuda, got ", value);
      continue;
    }
    bool is_type = false;
    for (DType type : {DType::f64, DType::f32, DType::bf16})
      if (argument == name_of(type)) dtype = type, is_type = true;
    if (!is_type) part = argument;
  }
  if (device != cpu_device && model.empty()) model = "ViT-B-32:1024";
  if (!dtype) dtype = device == cpu_device ? DType::f32 : DType::bf16;

  Bench bench(device, *dtype);
  std::printf("%s, %s%s%s\n",
              (device == cpu_device ? concat(cpu_threads(), " threads") : concat(device)).c_str(),
              name_of(*dtype), model.empty() ? "" : ", ", model.c_str());
  bench.measure_rulers();
  if (model.empty()) {
    for (const OpCase& op : speed_cases())
      if (op.name.find(part) != std::string::npos) bench.show(op);
    return 0;
  }
  const size_t colon = model.find(':');
  if (colon == std::string::npos) fail("--model is a model and a batch, like ViT-B-32:1024, got ", model);
  std::set<std::string> left = every_op();
  const ClipConfig config = find_model(model.substr(0, colon));
  for (const auto& make : clip_cases(config, whole_number("the batch of --model", model.substr(colon + 1)))) {
    const OpCase op = make();
    left.erase(op.name.substr(0, op.name.find(' ')));
    if (op.name.find(part) != std::string::npos) bench.show(op);
  }
  for (const std::string& name : left) std::printf("%s has no case\n", name.c_str());
  return 0;
}

}  // namespace

int main(int count, char** arguments) { return run_program("bench_kernels", run, count, arguments); }
