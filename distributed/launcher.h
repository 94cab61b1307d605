// launcher.h: one process per GPU on this host, started and ended together (clip_train --nproc N).
//
// The launcher itself touches no GPU. It starts the program N times with RANK, LOCAL_RANK, WORLD_SIZE,
// MASTER_ADDR and MASTER_PORT as torchrun would, forwards SIGTERM, SIGINT and SIGUSR1 to all of them, and
// when one ends badly gives the others `leave_seconds` to end by themselves (they hear of it through the
// watch) before it kills them. When the launcher is killed, its processes get SIGTERM from the system.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace switchback {

struct LaunchOptions {
  std::string program;                 // path; "/proc/self/exe" is this program
  std::vector<std::string> arguments;  // without the program's name
  int processes = 1;
  double leave_seconds = 11;
};

// Returns when all have ended: 0 when all ended well, else the status of the first that did not (128 + signal
// when it was killed). One line on stderr for a process that could not speak for itself.
int launch(const LaunchOptions& options);

// With `--nproc N` (or `--nproc=N`) among the arguments: runs this program N times without it and returns the
// exit status. Errors: N is no number; started by torchrun or mpirun as well.
std::optional<int> launch_if_asked(int argc, char** argv);

}  // namespace switchback
