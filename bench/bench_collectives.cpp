// bench_collectives.cpp: how fast the ranks' collectives are, by size.
//
//   build/bench/bench_collectives --nproc 2 [--device cuda] [--largest 1024] (MiB)
//
// Bus bandwidth is what NCCL's own tests call so: the bytes that a link carries, which does not depend on the
// number of ranks n where the links are the bound: an all-reduce moves 2 (n - 1)/n of its size over each, an
// all-gather and a reduce-scatter (n - 1)/n, a reduce all of it. Times are of several operations in a row,
// from one end to the other, on the device.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <functional>

#include "apps/flags.h"
#include "distributed/launcher.h"
#include "distributed/nccl_communicator.h"
#include "distributed/world.h"
#include "kernels/kernels.h"
#include "runtime/tensor.h"

using namespace switchback;

namespace {

struct Options {
  std::string device = "cpu";
  int64_t nproc = 0, largest = 1024;
};

double seconds_of(Kernels& k, Communicator& ranks, int times, const std::function<void()>& operation) {
  operation();  // connects
  ranks.join();
  k.synchronize();
  ranks.barrier();
  const auto begin = k.mark();
  for (int i = 0; i < times; ++i) operation();
  ranks.join();
  return k.mark()->seconds_since(*begin) / times;
}

void run(const Options& o, World& world, Device device) {
  world.at("the benchmark", 300);
  Communicator& ranks = world.communicator(device);
  Kernels& k = kernels(device);
  const int n = world.size();
  if (world.leads())
    std::printf("%d ranks on %s\n%10s %34s %34s %34s %34s\n", n, concat(device).c_str(), "MiB", "all-reduce f32",
                "all-gather bf16", "reduce-scatter f32", "reduce f32");
  const double share = static_cast<double>(n - 1) / n;
  for (int64_t size = 1; size <= o.largest; size *= 4) {
    const int64_t bytes = size << 20;
    const int times = size >= 256 ? 5 : 20;
    const Tensor floats({bytes / 4 / n * n}, DType::f32, device), halves({bytes / 2 / n * n}, DType::bf16, device);
    k.fill(floats, 0);
    k.fill(halves, 0);
    const Tensor own_floats = floats.part(floats.size() / n * ranks.rank(), {floats.size() / n}),
                 own_halves = halves.part(halves.size() / n * ranks.rank(), {halves.size() / n});
    if (world.leads()) std::printf("%10lld", static_cast<long long>(size));
    const auto show = [&](double moved, const std::function<void()>& operation) {
      const double seconds = seconds_of(k, ranks, times, operation);
      if (world.leads())
        std::printf(" %12.1f us, bus %8.1f GB/s", seconds * 1e6, moved * static_cast<double>(bytes) / seconds * 1e-9);
    };
    show(2 * share, [&] { ranks.all_reduce(floats); });
    show(share, [&] { ranks.all_gather(halves, own_halves); });
    show(share, [&] { ranks.reduce_scatter(own_floats, floats); });
    show(1, [&] { ranks.reduce(floats, 0); });
    if (world.leads()) std::printf("\n"), std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    Options options;
    CLI::App app("Bandwidth of the ranks' collectives by size");
    app.add_option("--nproc", options.nproc, "start so many ranks on this host, one GPU each");
    app.add_option("--device", options.device)->check(CLI::IsMember({"cpu", "cuda"}))->capture_default_str();
    app.add_option("--largest", options.largest, "MiB")->check(positive())->capture_default_str();
    if (!parse_flags(app, argc, argv)) return 0;
    if (options.nproc > 0) return *launch_if_asked(argc, argv);
    const RankEnvironment environment = rank_environment();
    if (environment.world_size < 2) fail("one rank has nobody to talk to: --nproc 2, or more");
    const Device device = options.device == "cuda"
                              ? Device{Device::cuda, gpu_of_rank(environment, visible_gpus())}
                              : cpu_device;
    World world(environment, {{}, gpu_seat(device)});
    try {
      run(options, world, device);
      return 0;
    } catch (const std::exception& e) {
      const std::string line = world.last_words(e);
      if (!line.empty()) std::fprintf(stderr, "bench_collectives: %s\n", line.c_str());
      return 1;
    }
  } catch (const std::exception& e) {
    std::fprintf(stderr, "bench_collectives: %s\n", e.what());
    return 1;
  }
}
