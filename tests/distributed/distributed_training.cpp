// distributed_training: the small training over processes; rank 0 writes the weights.
//
//   distributed_training --nproc 2 FILE softmax|siglip whole|sharded
#include <cstdio>

#include "distributed/launcher.h"
#include "distributed/world.h"
#include "runtime/file.h"
#include "tests/distributed/small_training.h"

int main(int argc, char** argv) {
  using namespace switchback;
  try {
    if (const auto status = launch_if_asked(argc, argv)) return *status;
    World world(rank_environment(), {});
    const SmallResult r = train_small({.parts = 2,
                                       .siglip = std::string(argv[2]) == "siglip",
                                       .sharded = std::string(argv[3]) == "sharded"},
                                      world.host());
    if (world.leads())
      write_file(argv[1],
                 {reinterpret_cast<const char*>(r.weights.data()), r.weights.size() * sizeof(double)});
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "distributed_training: %s\n", error.what());
    return 1;
  }
}
