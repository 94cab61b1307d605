// distributed_rank: one rank of a small "training" whose faults the tests choose.
//
//   distributed_rank --nproc 4 SCENARIO RANK [FILE]
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

#include "distributed/launcher.h"
#include "distributed/world.h"
#include "runtime/file.h"
#include "runtime/tensor.h"

namespace switchback {
namespace {

volatile std::sig_atomic_t stopped = 0;
void on_stop(int) { stopped = 1; }

void sleep_for(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

int run(int argc, char** argv) {
  const std::string scenario = argc > 1 ? argv[1] : "";
  const int victim = argc > 2 ? std::atoi(argv[2]) : -1;
  const std::string file = argc > 3 ? argv[3] : "";
  const RankEnvironment environment = rank_environment();
  const bool chosen = environment.rank == victim;
  if (scenario == "die-early" && chosen) raise(SIGKILL);
  if (scenario == "exit-early" && chosen) return 3;

  Introduction introduction;
  introduction.must_agree = {{"the program", "1"},
                             {"--batch-size", scenario == "flags" && chosen ? "64" : "32"}};
  introduction.seat = concat("GPU ", scenario == "gpus" ? 0 : environment.local_rank);
  World::Options options;
  options.gather_seconds = 20;
  options.place_seconds = scenario == "hang" ? 0.5 : 20;
  options.watch = {.beat_seconds = 0.05, .silence_seconds = 5, .leave_seconds = 1};
  std::unique_ptr<World> world;
  try {
    world = std::make_unique<World>(environment, introduction, options);
  } catch (const PeerFailure&) {
    return 1;  // rank 0 says it
  } catch (const std::exception& error) {
    std::fprintf(stderr, "distributed_rank: %s\n", error.what());
    return 1;
  }
  signal(SIGTERM, on_stop);
  try {
    Communicator& c = world->host();
    int64_t step = 0;
    for (bool go_on = true; go_on; ++step) {
      world->at(concat("forward of step ", step));
      if (step == 3) {
        if (scenario == "die-forward" || scenario == "hang" || scenario == "delay")
          sleep_for(0.2);  // a beat passes
        if (chosen && scenario == "die-forward") raise(SIGKILL);
        if (chosen && scenario == "throw") fail("the loss is NaN");
        if (chosen && scenario == "hang") sleep_for(100);
        if (chosen && scenario == "delay") sleep_for(1);
        if (chosen && scenario == "leave") _exit(0);
        if (scenario == "die-reduce" && chosen) std::thread([] { sleep_for(0.4), raise(SIGKILL); }).detach();
        if (scenario == "die-reduce" && environment.rank == 0)
          sleep_for(1.5);  // so that all others are inside
      }
      world->at(concat("backward of step ", step));
      // The gradient, and whether anybody was told to stop: one operation, so all stop at the same step.
      const Tensor sum = Tensor::of<double>({2}, {1.0 + environment.rank, stopped ? 1.0 : 0.0});
      c.all_reduce(sum);
      const bool endless = scenario == "stop";
      if (endless && step == 3 && environment.rank == 0) std::printf("running\n"), std::fflush(stdout);
      if (endless) sleep_for(0.005);
      go_on = sum.span<double>()[1] == 0 && (endless || step < 5);
      if (!go_on && environment.rank == 0)
        std::printf("sum %g%s\n", sum.span<double>()[0], endless ? ", stopped" : "");
    }
    if (!file.empty()) {
      world->at("saving", 60);
      if (world->leads()) {
        AtomicFile out(file);
        out.write("half of the new ");
        if (scenario == "die-saving") sleep_for(0.2), raise(SIGKILL);
        out.write("checkpoint");
        out.commit();
      }
      c.barrier();
    }
    return 0;
  } catch (const std::exception& error) {
    const std::string line = world->last_words(error);
    if (!line.empty()) std::fprintf(stderr, "distributed_rank: %s\n", line.c_str());
    return 1;
  }
}

}  // namespace
}  // namespace switchback

int main(int argc, char** argv) {
  try {
    if (const auto status = switchback::launch_if_asked(argc, argv)) return *status;
    return switchback::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "distributed_rank: %s\n", error.what());
    return 1;
  }
}
