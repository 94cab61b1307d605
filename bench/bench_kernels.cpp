// bench_kernels.cpp: time of every CPU kernel on a small CLIP's sizes, in f32.
//
//   build/bench/bench_kernels [part of a name] [f64|f32|bf16]
//
// Prints, per case: the fastest and the median time of a call and, for the fastest, GFLOP/s (products) and
// GB/s (every operand moved once). The first two lines are the rulers: the memory bandwidth of a copy larger
// than most caches, and the rate of one large matrix product. Threads: SWITCHBACK_CPU_THREADS. On a busy
// machine only the fastest time means something: a loop on all cores waits for its last thread.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>

#include "runtime/parallel.h"
#include "tests/kernels/op_cases.h"

using namespace switchback;

namespace {

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Times {
  double fastest, median;
};

// Of calls that together take about 0.2 s.
Times times_of(const std::function<void()>& call) {
  call();
  std::vector<double> times;
  for (const double end = seconds_now() + 0.2;
       times.size() < 5 || (seconds_now() < end && times.size() < 2000);) {
    const double start = seconds_now();
    call();
    times.push_back(seconds_now() - start);
  }
  std::nth_element(times.begin(), times.begin() + static_cast<int64_t>(times.size() / 2), times.end());
  return {*std::min_element(times.begin(), times.end()), times[times.size() / 2]};
}

void measure(const OpCase& op, DType dtype) {
  const Bound bound = bind(op, {dtype});
  const auto [seconds, median] = times_of([&] { op.call(bound); });
  std::printf("%-58s %9.3f ms, median %9.3f", op.name.c_str(), seconds * 1e3, median * 1e3);
  if (op.flops > 0)
    std::printf(" %8.1f GFLOP/s", op.flops / seconds * 1e-9);
  else
    std::printf(" %16s", "");
  std::printf(" %8.1f GB/s\n", op.bytes(dtype) / seconds * 1e-9);
}

}  // namespace

int main(int count, char** arguments) {
  std::string part = count > 1 ? arguments[1] : "";
  DType dtype = DType::f32;
  for (int i = 1; i < count; ++i)
    for (DType type : {DType::f64, DType::f32, DType::bf16})
      if (std::string(arguments[i]) == name_of(type)) {
        dtype = type;
        if (i == 1) part.clear();
      }
  std::printf("%d threads, %s\n", cpu_threads(), name_of(dtype));
  measure(accumulate_case(16 << 20), dtype);
  measure(matmul_case(2048, 2048, 2048, false, false), dtype);
  for (const OpCase& op : speed_cases())
    if (op.name.find(part) != std::string::npos) measure(op, dtype);
}
